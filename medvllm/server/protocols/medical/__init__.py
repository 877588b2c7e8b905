"""The server's own protocol: the medical tasks, with offsets, coverage and receipts."""

from fastapi import APIRouter

from medvllm.server.protocols.medical import assertions, classify, entities, fill_mask, redact

router = APIRouter(tags=["Medical"])
for task in (entities, redact, classify, assertions, fill_mask):
    router.include_router(task.router)
