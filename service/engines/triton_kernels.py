"""Triton kernels: a convolution whose widths each image brings along, max-pooling, a decision.

Maps are (N, H, W, C). Widths are read on the device, one per image, in groups; 0 says that nothing
is to be done for this image. What lies beyond an image's width is neither read nor written, so a
map's memory need not be initialised. Upper-case arguments are known when a kernel is compiled.

The kernels run on a GPU, or with TRITON_INTERPRET=1, set before this module is imported, in
Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter multiplies bfloat16 as if it were uint16.
WIDENED = tl.constexpr(triton.knobs.runtime.interpret)


# Rows of the widths' table start anywhere; code that depended on where would be compiled for each.
@triton.jit(
    do_not_specialize=["n_rows"],
    do_not_specialize_on_alignment=["in_width", "out_width", "added_width"],
)
def conv_kernel(
    x,
    weight,
    scale,
    shift,
    in_width,
    out_width,
    added,
    added_width,
    out,
    sums,
    n_rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IN_GROUP: tl.constexpr,
    OUT_GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ADDED: tl.constexpr,
    ADDED_GROUP: tl.constexpr,
    ADDED_SIZE: tl.constexpr,
    ADDED_STRIDE: tl.constexpr,
    ROW: tl.constexpr,
    FLAT: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Convolution, normalisation, shortcut, ReLU, max-pooling and the sums of what comes out.

    A tile holds BLOCK_M positions, of one image or of several, by BLOCK_N output channels. It
    exits if no image in it is as wide; else it reduces over the widest input among them.

    Args:
        x: (N, SIZE, SIZE, IN). weight: (KERNEL * KERNEL * IN, OUT).
        scale, shift: (k, OUT) float32, a row for each input width.
        in_width, out_width: (N,) int32, groups of IN_GROUP and OUT_GROUP channels.
        added: (N, ADDED_SIZE, ADDED_SIZE, ADDED), the shortcut, of which every ADDED_STRIDE-th
            position is added; missing channels count as zeros. ADDED is 0 where there is none.
        added_width: (N,) int32, its groups of ADDED_GROUP.
        out: (N, OUT_SIZE, OUT_SIZE, OUT), after the pooling.
        sums: (N, ROW / BLOCK_M, OUT) float32, what each tile's outputs add up to, if SUMS.
        POOL: side of the pooling's windows, which do not overlap: 1 (no pooling) or 2.
        ROW: positions from an image's first to the next image's: as many as there are, or, so
            that no tile holds two images, rounded up to a multiple of BLOCK_M.
        FLAT: reduce over positions and channels in one, for an input of few channels.
    """
    tile, n_start = tl.program_id(0), tl.program_id(1) * BLOCK_N
    WINDOW: tl.constexpr = POOL * POOL
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = n_start + tl.arange(0, BLOCK_N)
    row, place = m // ROW, m % ROW
    exists = (row < n_rows) & (place < OUT_SIZE * OUT_SIZE * WINDOW)
    wide = tl.load(out_width + row, mask=exists, other=0) * OUT_GROUP > n_start
    read = tl.load(in_width + row, mask=exists & wide, other=0)
    most = tl.max(read, axis=0)
    if most == 0:
        return

    # The places of a pooling window follow each other.
    window, within = place // WINDOW, place % WINDOW
    out_y = window // OUT_SIZE * POOL + within // POOL
    out_x = window % OUT_SIZE * POOL + within % POOL
    top, left = (out_y * STRIDE - PADDING)[:, None], (out_x * STRIDE - PADDING)[:, None]
    image, reads = (row * (SIZE * SIZE * IN))[:, None], (read * IN_GROUP)[:, None]
    blocks = tl.cdiv(tl.minimum(most * IN_GROUP, IN), BLOCK_K)
    steps = KERNEL * KERNEL * blocks
    if FLAT:
        steps = tl.cdiv(KERNEL * KERNEL * IN, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, steps):
        if FLAT:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            c, tap, dy, dx = k % IN, k // IN, (k // IN // KERNEL)[None, :], k // IN % KERNEL
            dx = dx[None, :]
        else:
            c, tap = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K), step // blocks
            dy, dx = tap // KERNEL, tap % KERNEL
        real = (c < IN) & (tap < KERNEL * KERNEL)
        in_y, in_x = top + dy, left + dx
        inside = (in_y >= 0) & (in_y < SIZE) & (in_x >= 0) & (in_x < SIZE)
        x_mask = inside & real[None, :] & (c[None, :] < reads)
        x_tile = tl.load(x + image + (in_y * SIZE + in_x) * IN + c[None, :], mask=x_mask, other=0)
        w_mask = real[:, None] & (n < OUT)[None, :]
        w_tile = tl.load(weight + (tap * IN + c)[:, None] * OUT + n[None, :], mask=w_mask, other=0)
        if WIDENED:
            x_tile, w_tile = x_tile.to(tl.float32), w_tile.to(tl.float32)
        acc = tl.dot(x_tile, w_tile, acc, input_precision="ieee")

    channel = (n < OUT)[None, :]
    entry = (tl.maximum(read, 1) - 1)[:, None] * OUT + n[None, :]
    y = acc * tl.load(scale + entry, mask=channel) + tl.load(shift + entry, mask=channel)
    if ADDED:
        groups = tl.load(added_width + row, mask=exists & wide, other=0)[:, None]
        a_mask = (n[None, :] < groups * ADDED_GROUP) & (n < ADDED)[None, :]
        position = (row * ADDED_SIZE + out_y * ADDED_STRIDE) * ADDED_SIZE + out_x * ADDED_STRIDE
        a_tile = tl.load(added + position[:, None] * ADDED + n[None, :], mask=a_mask, other=0)
        y += a_tile.to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0)
    if POOL > 1:
        y = tl.max(tl.reshape(y, (BLOCK_M // WINDOW, WINDOW, BLOCK_N)), axis=1)

    m = tile * (BLOCK_M // WINDOW) + tl.arange(0, BLOCK_M // WINDOW)
    row, place = m // (ROW // WINDOW), m % (ROW // WINDOW)
    exists = (row < n_rows) & (place < OUT_SIZE * OUT_SIZE)
    computed = tl.load(out_width + row, mask=exists, other=0)[:, None] * OUT_GROUP
    wanted = channel & (n[None, :] < computed)
    position = (row * (OUT_SIZE * OUT_SIZE) + place)[:, None]
    tl.store(out + position * OUT + n[None, :], y.to(out.dtype.element_ty), mask=wanted)
    if SUMS:
        tl.store(sums + tile * OUT + n, tl.sum(tl.where(wanted, y, 0), axis=0), mask=n < OUT)


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=["width"])
def max_pool_kernel(
    x,
    width,
    out,
    n_rows,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Max-pooling over windows that may overlap.

    Args:
        x: (N, SIZE, SIZE, CHANNELS). out: (N, OUT_SIZE, OUT_SIZE, CHANNELS).
        width: (N,) int32, groups of GROUP channels.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    row, place = m // (OUT_SIZE * OUT_SIZE), m % (OUT_SIZE * OUT_SIZE)
    there = tl.load(width + row, mask=row < n_rows, other=0) * GROUP
    if tl.max(there, axis=0) <= tl.program_id(1) * BLOCK_N:
        return
    wanted = (n < there[:, None]) & (n < CHANNELS)
    top, left = place // OUT_SIZE * STRIDE - PADDING, place % OUT_SIZE * STRIDE - PADDING
    largest = tl.full((BLOCK_M, BLOCK_N), -float("inf"), tl.float32)
    for tap in range(KERNEL * KERNEL):
        in_y, in_x = top + tap // KERNEL, left + tap % KERNEL
        inside = (in_y >= 0) & (in_y < SIZE) & (in_x >= 0) & (in_x < SIZE)
        position = ((row * SIZE + in_y) * SIZE + in_x)[:, None]
        found = tl.load(
            x + position * CHANNELS + n, mask=inside[:, None] & wanted, other=-float("inf")
        )
        largest = tl.maximum(largest, found.to(tl.float32))
    tl.store(out + m[:, None] * CHANNELS + n, largest.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _weighted(values, weight, row, exists, h, HIDDEN: tl.constexpr):
    """What values of (B,) features add to (H,) sums by rows `row` (B,) of a weight (F, HIDDEN)."""
    mask = exists[:, None] & (h < HIDDEN)[None, :]
    columns = tl.load(weight + row[:, None] * HIDDEN + h[None, :], mask=mask, other=0)
    return tl.sum(values[:, None] * columns, axis=0)


@triton.jit(do_not_specialize=["n_rows"])
def decide_kernel(
    logits,
    means,
    penalty,
    limits,
    weight0,
    bias0,
    weight1,
    bias1,
    weight2,
    bias2,
    price,
    macs,
    paths,
    widths,
    chosen,
    spent,
    n_rows,
    LOOK: tl.constexpr,
    PATHS: tl.constexpr,
    STEPS: tl.constexpr,
    CLASSES: tl.constexpr,
    SHARES: tl.constexpr,
    TOP: tl.constexpr,
    READ: tl.constexpr,
    MAPS: tl.constexpr,
    HIDDEN: tl.constexpr,
    MIDPOINT: tl.constexpr,
    LEAST_LOG: tl.constexpr,
    ALL_CLASSES: tl.constexpr,
    ALL_HIDDEN: tl.constexpr,
    ALL_PATHS: tl.constexpr,
    ALL_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The agent's decision after path LOOK, a program per image; see `models.agent.PathAgent`.

    ALL_… are powers of two that hold as many. SHARES is CLASSES, or 0 if it sees only the sorted
    ones; READ is then 0, too.

    Args:
        logits: (N, CLASSES) float32. means: (N, MAPS) float32, of which READ are read.
        penalty: (N,) float32. limits: (N,) int64, MACs that may be spent.
        weight…, bias…: float32, of the decision's layers, weights as (inputs, outputs).
        price: (PATHS,) float32. macs: (PATHS,) int64.
        paths: (PATHS, STEPS) int32, groups at each step of a path.
        widths: (PATHS, STEPS, N) int32, 0 where an image does not run a path; those of the path
            to go on with are written.
        chosen, spent: (N,) int64, the path to run and the MACs with it; written to go on.
    """
    row = tl.program_id(0)
    if tl.load(widths + LOOK * STEPS * n_rows + row) == 0:
        return
    i, h = tl.arange(0, ALL_CLASSES), tl.arange(0, ALL_HIDDEN)
    scores = tl.load(logits + row * CLASSES + i, mask=i < CLASSES, other=-float("inf"))
    most = tl.max(scores, axis=0)
    total = most + tl.log(tl.sum(tl.exp(scores - most), axis=0))

    hidden = tl.load(bias0 + h, mask=h < HIDDEN, other=0)
    for start in range(0, SHARES, BLOCK):
        b = start + tl.arange(0, BLOCK)
        exists = b < SHARES
        logs = tl.load(logits + row * CLASSES + b, mask=exists, other=0) - total
        logs = tl.maximum(logs, LEAST_LOG)
        hidden += _weighted(tl.exp(logs), weight0, b, exists, h, HIDDEN)
        hidden += _weighted(logs, weight0, b + (SHARES + TOP), exists, h, HIDDEN)
    for rank in tl.static_range(TOP):
        log = tl.maximum(tl.max(scores, axis=0) - total, LEAST_LOG)
        share, logarithm = SHARES + rank, 2 * SHARES + TOP + rank
        hidden += tl.exp(log) * tl.load(weight0 + share * HIDDEN + h, mask=h < HIDDEN, other=0)
        hidden += log * tl.load(weight0 + logarithm * HIDDEN + h, mask=h < HIDDEN, other=0)
        scores = tl.where(i == tl.argmax(scores, axis=0), -float("inf"), scores)
    for start in range(0, READ, BLOCK):
        b = start + tl.arange(0, BLOCK)
        exists = b < READ
        pooled = tl.load(means + row * MAPS + b, mask=exists, other=0)
        hidden += _weighted(pooled, weight0, b + 2 * (SHARES + TOP), exists, h, HIDDEN)
    asked = tl.load(penalty + row)
    told = tl.maximum(asked, 0) / (tl.maximum(asked, 0) + MIDPOINT)
    last = 2 * (SHARES + TOP) + READ
    hidden += told * tl.load(weight0 + last * HIDDEN + h, mask=h < HIDDEN, other=0)

    hidden = tl.maximum(hidden, 0)
    second = _weighted(hidden, weight1, h, h < HIDDEN, h, HIDDEN)
    hidden = tl.maximum(second + tl.load(bias1 + h, mask=h < HIDDEN, other=0), 0)
    p = tl.arange(0, ALL_PATHS)
    later = LOOK + 1 + p
    exists = later < PATHS
    gain = _weighted(hidden, weight2, h, h < HIDDEN, p, PATHS - 1 - LOOK)
    gain += tl.load(bias2 + p, mask=exists, other=0)

    values = gain - asked * tl.load(price + later, mask=exists, other=0)
    left = tl.load(limits + row) - tl.load(spent + row)
    cost = tl.load(macs + later, mask=exists, other=0)
    values = tl.where(exists & (cost <= left), values, -float("inf"))
    # To stop is worth nothing, and what is worth no more is not run.
    if tl.max(values, axis=0) > 0:
        path = LOOK + 1 + tl.argmax(values, axis=0)
        s = tl.arange(0, ALL_STEPS)
        groups = tl.load(paths + path * STEPS + s, mask=s < STEPS, other=0)
        tl.store(widths + (path * STEPS + s) * n_rows + row, groups, mask=s < STEPS)
        tl.store(chosen + row, path.to(tl.int64))
        tl.store(spent + row, tl.load(spent + row) + tl.load(macs + path))
