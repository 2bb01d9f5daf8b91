#!/usr/bin/env python3
"""Prints what this GPU does at most: a large copy, and large bf16 products through PyTorch (if it is installed)."""

import statistics

import torch


def median_ms(work, repeats: int = 12) -> float:
    """Median device time of one call of work(), after three warm-ups."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def main() -> None:
    """Copy bandwidth counts bytes read and written; products are of random data."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source))
    print(f"ceiling: copy {2 * source.numel() / ms * 1e-6:.0f} GB/s")
    ms = median_ms(lambda: source.view(torch.int64).sum())
    print(f"ceiling: read {source.numel() / ms * 1e-6:.0f} GB/s (a sum)")
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = median_ms(lambda: a @ b)
    print(f"ceiling: bf16 product {2 * n**3 / ms * 1e-9:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
