"""ollama against a server: argv[1] is its address, argv[2] that of one that is full. Prints what it saw as JSON."""

import json
import sys

import ollama

client, busy = map(ollama.Client, sys.argv[1:])


def error_of(call):
    try:
        call()
    except ollama.ResponseError as error:
        return {"status": error.status_code, "message": error.error}


def running():
    return {
        each.model: [str(each.expires_at), each.size_vram, each.size, each.context_length]
        for each in client.ps().models
    }


found = {"none": running(), "names": [each.model for each in client.list().models]}
answer = client.embed("enc", ["fever", "no pain"], keep_alive="10m", dimensions=4)
found |= {"vectors": answer.embeddings, "tokens": answer.prompt_eval_count, "minutes": running()}
client.embed("enc", "fever", keep_alive=-1)
found["pinned"] = running()
client.embed("enc", "fever", keep_alive=0)
found["left"] = running()
shown = client.show("enc")
found |= {"shown": shown.modelinfo, "capabilities": shown.capabilities}
found["errors"] = {
    "wrong model": error_of(lambda: client.embed("ecn", "a")),
    "wrong model, shown": error_of(lambda: client.show("ecn")),
    "full": error_of(lambda: busy.embed("enc", "a")),
    "final": error_of(lambda: client.embed("large", "a")),
    "keep_alive": error_of(lambda: client.embed("enc", "a", keep_alive="soon")),
}
print(json.dumps(found))
