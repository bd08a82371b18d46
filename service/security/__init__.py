"""Who may ask, how often, and how slowly; each part costs nothing while its settings are absent."""
