"""openai against a server: argv[1] is its address, argv[2] that of one that is full. Prints what it saw as JSON."""

import asyncio
import json
import sys

import openai

base, full = (f"{each}/v1" for each in sys.argv[1:])
TEXTS = ["the patient denies chest pain", "aspirin 😀"]
CHAT = [{"role": "user", "content": "fever?"}]

sent = []
counting = openai.DefaultHttpxClient(event_hooks={"request": [lambda request: sent.append(str(request.url))]})
client = openai.OpenAI(base_url=base, api_key="none", http_client=counting)
busy = openai.OpenAI(base_url=full, api_key="none", max_retries=0)


def describe(stream):
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "roles": [choice.delta.role for choice in choices if choice.delta.role],
        "reasons": [choice.finish_reason for choice in choices if choice.finish_reason],
        "usage": chunks[-1].usage and chunks[-1].usage.total_tokens,
        "ids": len({chunk.id for chunk in chunks}),
    }


async def describe_async():
    async with openai.AsyncOpenAI(base_url=base, api_key="none") as client:
        stream = await client.chat.completions.create(model="org/chat", messages=CHAT, max_tokens=16, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        vectors = await client.embeddings.create(model="enc", input=TEXTS)
    statuses = []
    for url, model in ((base, "ecn"), (full, "enc"), (base, "large")):
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            try:
                await client.embeddings.create(model=model, input=TEXTS)
            except openai.APIStatusError as error:
                statuses.append(error.status_code)
    return {"text": "".join(pieces), "vectors": [each.embedding for each in vectors.data], "statuses": statuses}


def error_of(call):
    del sent[:]
    try:
        call()
    except openai.APIError as error:
        status = getattr(error, "status_code", None)
        headers = error.response.headers if status else {}
        return {
            "type": type(error).__name__,
            "status": status,
            "code": error.code,
            "message": str(error),
            "param": error.param,
            "retry_after": headers.get("retry-after"),
            "requests": len(sent),
        }


def complete(client=client, **options):
    return client.completions.create(**{"model": "org/chat", "prompt": TEXTS, "max_tokens": 8} | options)


def chat(client=client, **options):
    return client.chat.completions.create(**{"model": "org/chat", "messages": CHAT, "max_tokens": 16} | options)


def embed(client=client, **options):
    return client.embeddings.create(**{"model": "enc", "input": TEXTS} | options)


models = client.models.list()
answer, vectors = chat(), embed()
found = {
    "models": [each.id for each in models],
    "model": client.models.retrieve("org/chat@1").model_dump(),
    "base64": [each.embedding for each in vectors.data],
    "float": [each.embedding for each in embed(encoding_format="float").data],
    "short": [each.embedding for each in embed(dimensions=4).data],
    "tokens": vectors.usage.prompt_tokens,
    "text": answer.choices[0].message.content,
    "reason": answer.choices[0].finish_reason,
    "usage": answer.usage.total_tokens,
    "again": chat(messages=[*CHAT, answer.choices[0].message, *CHAT], max_tokens=1).usage.completion_tokens,
    "neutral": chat(n=1, tools=[], logprobs=False, response_format={"type": "text"}, presence_penalty=0.0, top_p=1)
    .choices[0]
    .message.content,
    "streamed": describe(chat(stream=True, stream_options={"include_usage": True})),
    "async": asyncio.run(describe_async()),
    "completed": [each.text for each in complete().choices],
    "stopped": complete(prompt="fever", stop=complete(prompt="fever").choices[0].text[2:4]).choices[0].text,
    "sampled": [complete(temperature=0.8, seed=7, top_p=0.9).choices[0].text for _ in range(2)],
    "errors": {
        "wrong model": error_of(lambda: chat(model="org/chta")),
        "wrong model, streamed": error_of(lambda: chat(model="org/chta", stream=True)),
        "full": error_of(lambda: embed(client=busy)),
        "full, streamed": error_of(lambda: chat(client=busy, stream=True)),
        "final": error_of(lambda: embed(model="large")),
        "final, streamed": error_of(lambda: chat(model="large", stream=True)),
        "broken": error_of(lambda: list(complete(model="broken", prompt="a", max_tokens=60, stream=True))),
        "ids": error_of(lambda: embed(input=[[57668, 53901]])),
        "tools": error_of(lambda: chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
        "several": error_of(lambda: chat(n=2)),
        "logprobs": error_of(lambda: chat(logprobs=True)),
        "format": error_of(lambda: chat(response_format={"type": "json_object"})),
        "image": error_of(
            lambda: chat(
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
            )
        ),
        "too long": error_of(lambda: chat(max_tokens=100_000)),
        "encoder": error_of(lambda: chat(model="enc", stream=True)),
        "too many dimensions": error_of(lambda: embed(dimensions=4000)),
    },
}
print(json.dumps(found))
