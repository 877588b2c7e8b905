"""OpenAI's API: models, embeddings, chat and completions."""

from fastapi import APIRouter

from medvllm.server.protocols.openai import completions, embeddings, models

router = APIRouter(tags=["OpenAI"])
for part in (models, embeddings, completions):
    router.include_router(part.router)
