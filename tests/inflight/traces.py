"""What the traces worked out by hand are made of."""

from toolkit.inflight import Request, Scheduler, SchedulerConfig, Step

CONFIG = SchedulerConfig(
    max_batch_size=2,
    max_num_tokens=8,
    micro_batches=2,
    num_blocks=8,
    tokens_per_block=4,
    policy="guaranteed_no_evict",
    chunked_context=True,
    reuse=True,
    max_queue_size=10,
    max_seq_len=20,
)


def described(step: Step | None) -> tuple | None:
    """(slot, [context works], [generation works]), each work (id, start, length, emits, blocks)."""
    if step is None:
        return None
    works = [
        [(w.request.id, w.start, w.length, w.emits, list(w.blocks)) for w in part]
        for part in (step.context, step.generation)
    ]
    assert [*step.context, *step.generation] == step.works
    return step.micro_batch, *works


def complete(scheduler: Scheduler, step: Step | None, *tokens: int) -> None:
    assert step
    scheduler.complete(step, list(tokens), [False] * len(tokens))


def start(config: SchedulerConfig, **sizes: tuple[list[int], int]) -> tuple[Scheduler, dict[str, Request]]:
    scheduler = Scheduler(config)
    requests = {name: Request(name, prompt, most) for name, (prompt, most) in sizes.items()}
    for request in requests.values():
        scheduler.submit(request)
    return scheduler, requests
