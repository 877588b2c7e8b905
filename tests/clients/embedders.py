"""Frameworks that embed by OpenAI's API: argv[1] is a server, argv[2] a full one. Prints what they saw as JSON."""

import json
import os
import sys

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

import openai
import tiktoken
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.dataclasses import Document
from haystack.utils import Secret
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

base, full = (f"{each}/v1" for each in sys.argv[1:])
TEXTS = ["the patient denies chest pain", "aspirin"]
# LangChain downloads OpenAI's vocabulary. Another one in its place needs no internet.
tiktoken.registry.ENCODINGS["cl100k_base"] = tiktoken.Encoding(
    "cl100k_base", pat_str=r"\s?\w+", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
)


def error_of(call):
    try:
        call()
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "message": str(error)}


def langchain(model="enc", base=base, **options):
    return OpenAIEmbeddings(
        model=model, base_url=base, api_key="none", max_retries=0, **{"check_embedding_ctx_length": False} | options
    )


def llama_index(model="enc", base=base):
    return OpenAILikeEmbedding(model_name=model, api_base=base, api_key="none", max_retries=0)


def haystack(model="enc", base=base):
    return OpenAITextEmbedder(model=model, api_base_url=base, api_key=Secret.from_token("none"), max_retries=0)


documents = OpenAIDocumentEmbedder(
    model="enc", api_base_url=base, api_key=Secret.from_token("none"), progress_bar=False
)
ways = {
    "LangChain": lambda **options: langchain(**options).embed_documents(TEXTS),
    "LlamaIndex": lambda **options: llama_index(**options).get_text_embedding_batch(TEXTS),
    "Haystack": lambda **options: [haystack(**options).run(text)["embedding"] for text in TEXTS],
}
found = {
    "vectors": {name: embed() for name, embed in ways.items()},
    "documents": [each.embedding for each in documents.run([Document(content=text) for text in TEXTS])["documents"]],
    "ids": error_of(lambda: langchain(check_embedding_ctx_length=True).embed_documents(TEXTS)),
    "errors": {
        name: {
            "wrong model": error_of(lambda embed=embed: embed(model="ecn")),
            "full": error_of(lambda embed=embed: embed(base=full)),
            "final": error_of(lambda embed=embed: embed(model="large")),
        }
        for name, embed in ways.items()
    },
}
print(json.dumps(found))
