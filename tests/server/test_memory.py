"""What a server takes, it has taken once its cache is full: requests that come later cost nothing that stays."""

from pathlib import Path

from serving import Server


def anonymous_mb(server: Server) -> float:
    """The process's own memory, as the kernel counts it."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def test_a_full_cache_takes_no_more_memory():
    # 256 pages. All conversations begin alike, so each copies the page that its beginning shares with another's: what
    # a copy touches and nothing else does shows as growth.
    tokens = 16384
    with Server(cache_tokens=tokens) as server:
        def ask(number: int) -> None:
            messages = [{"role": "user", "content": "the little dog saw a big red house and " * 3 + str(number)}]
            status, answer = server.request("/v1/chat/completions", {"messages": messages, "max_tokens": 2})
            assert status == 200, answer

        assert server.fill_cache() > 0.9
        for number in range(2):
            ask(number)
        before = anonymous_mb(server)
        for number in range(2, 66):
            ask(number)
        server.wait_idle()
        print(f"{before:.1f} MB, then {anonymous_mb(server):.1f} MB")
        assert anonymous_mb(server) < before + 2
        metrics = server.metrics()
        told = metrics['glint_resident_bytes{kind="anonymous"}'] / 2**20
        assert abs(told - anonymous_mb(server)) < 1
        # Seven layers: what nobody runs has no rows. The rest of what is anonymous is small.
        assert metrics["glint_cache_bytes"] == tokens * 7 * 1152
        assert tokens * 7 * 1152 / 2**20 <= told < tokens * 7 * 1152 / 2**20 + 40
