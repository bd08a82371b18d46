from __future__ import annotations

import httpx


def test_get_budget_is_the_setting_at_first(client: httpx.Client) -> None:
    assert client.get("/budget").json() == {"mode": "fixed", "budget": 0.5}


def test_put_budget_puts_it_in_force(client: httpx.Client) -> None:
    response = client.put("/budget", json={"mode": "fixed", "budget": 0.3})
    assert response.json() == client.get("/budget").json() == {"mode": "fixed", "budget": 0.3}
    assert 'rnp_budget{model="tiny"} 0.3' in client.get("/metrics").text


def test_put_budget_refused_one_changes_nothing(client: httpx.Client) -> None:
    assert client.put("/budget", json={"mode": "fixed", "budget": 0.01}).status_code == 422
    assert client.get("/budget").json()["budget"] == 0.5
