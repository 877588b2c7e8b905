"""The page: the catalogue, the memory and the models to try, for people. It needs no script and no other server."""

from fastapi import APIRouter

from medvllm.server.page import catalogue, comparison, entry, memory, static, trial

router = APIRouter(include_in_schema=False)
for view in (catalogue, entry, comparison, memory, trial, static):
    router.include_router(view.router)
