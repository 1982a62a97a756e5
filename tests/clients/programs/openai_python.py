import openai
from exchange import TEXTS, URL, give, wait_for

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
plain = client.embeddings.create(model="embedding", input=TEXTS)
numbers = client.embeddings.create(model=client.models.list().data[0].id, input=TEXTS, encoding_format="float")
raw = client.embeddings.with_raw_response.create(model="embedding", input=TEXTS).parse()


async def asynchronous():
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1/", api_key="none") as client:
        return await client.embeddings.create(model="embedding", input=TEXTS)


give(
    **{
        name: [item.embedding for item in response.data]
        for name, response in {"base64": plain, "float": numbers, "raw": raw, "async": wait_for(asynchronous())}.items()
    }
)
