"""tritonclient[http] against a server: argv[1] is host:port, argv[2] one that is full. Prints what it saw as JSON."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as async_triton

client, full = map(triton.InferenceServerClient, sys.argv[1:])
found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "server": client.get_server_metadata(),
    "model_ready": client.is_model_ready("ner"),
    "version_ready": client.is_model_ready("ner", "1"),
    "wrong_model_ready": client.is_model_ready("nr"),
    "metadata": client.get_model_metadata("org/embedder"),
}
client.load_model("ner")
found["loaded"] = [each for each in client.get_model_repository_index() if each["name"] == "ner"]
client.unload_model("ner")
found["unloaded"] = [each for each in client.get_model_repository_index() if each["name"] == "ner"]

TEXTS = ["Dr. Smith 😀 saw Jones", "", "fever " * 400]


def infer(
    model: str,
    texts: Sequence[str] = TEXTS,
    binary: bool = True,
    wanted: Sequence[str] | None = None,
    client: Any = client,
    **options: Any,
) -> Any:
    given = triton.InferInput("text", [len(texts)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), binary_data=binary)
    outputs = wanted and [triton.InferRequestedOutput(name, binary_data=binary) for name in wanted]
    return client.infer(model, [given], outputs=outputs, **options)


async def infer_async() -> Any:
    given = async_triton.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object))
    async with async_triton.InferenceServerClient(sys.argv[1]) as client:
        return await client.infer("org/embedder", [given], request_id="r1")


answers = [
    infer(
        "org/embedder",
        binary=binary,
        request_id="r1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    for binary in (True, False)
    for compression in (None, "gzip", "deflate")
]
answers.append(asyncio.run(infer_async()))
found["ids"] = [answer.get_response()["id"] for answer in answers]
found["vectors"] = [answer.as_numpy("embedding").tolist() for answer in answers]
tagged = infer("ner", wanted=["entities"], model_version="1")
found["entities"] = [json.loads(text) for text in tagged.as_numpy("entities")]
found["outputs"] = [output["name"] for output in tagged.get_response()["outputs"]]


def error_of(call: Callable[[], object]) -> list[str] | None:
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), str(error)]
    return None


wrong = triton.InferInput("text", [1], "INT32")
wrong.set_data_from_numpy(np.array([3], np.int32))
found["errors"] = {
    "wrong model": error_of(lambda: infer("nr", ["secret-canary"])),
    "full queue": error_of(lambda: infer("ner", ["secret-canary"], client=full)),
    "final refusal": error_of(lambda: infer("short", ["secret-canary, which is a text of many tokens"])),
    "wrong type": error_of(lambda: client.infer("ner", [wrong])),
    "wrong output": error_of(lambda: infer("ner", ["secret-canary"], wanted=["vectors"])),
    "wrong option": error_of(lambda: infer("ner", ["secret-canary"], parameters={"thresold": 0.5})),
    "config": error_of(lambda: client.get_model_config("ner")),
    "statistics": error_of(lambda: client.get_inference_statistics()),
    "load": error_of(lambda: client.load_model("nr")),
}
print(json.dumps(found))
