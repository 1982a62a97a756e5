import openai
from exchange import TEXTS, URL, give
from qdrant_client import QdrantClient, models

data = openai.OpenAI(base_url=f"{URL}/v1", api_key="none").embeddings.create(model="embedding", input=TEXTS).data
client = QdrantClient(":memory:")
size = len(data[0].embedding)
client.create_collection("texts", models.VectorParams(size=size, distance=models.Distance.COSINE))
client.upsert("texts", [models.PointStruct(id=item.index, vector=item.embedding) for item in data])
nearest = [client.query_points("texts", query=item.embedding, limit=1).points[0].id for item in data]
assert nearest == list(range(len(TEXTS))), nearest
give(vectors=[point.vector for point in client.retrieve("texts", range(len(TEXTS)), with_vectors=True)])
