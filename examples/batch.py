"""Many items through one function: each item is its own checkpoint, so a restart repeats none that was done.

Try it:

    agnt5 dev examples/batch.py
    agnt5 run index_documents --input '{"doc_ids": ["a", "b", "c"]}'
"""

from agnt5 import WorkflowContext, function, workflow


@function(retries=3, timeout_ms=10_000)
async def index_document(doc_id: str) -> int:
    if doc_id == "corrupt":
        raise ValueError("this document cannot be read")
    return len(doc_id)


@workflow
async def index_documents(ctx: WorkflowContext, doc_ids: list[str]) -> dict[str, object]:
    result = await ctx.batch(index_document, [{"doc_id": doc_id} for doc_id in doc_ids], max_concurrency=20)
    return {
        "indexed": result.stats.completed_items,
        "failed": [doc_ids[item.index] for item in result.failed_items()],
    }
