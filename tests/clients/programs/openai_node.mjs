import OpenAI from "openai";
import { give, texts, url } from "./exchange.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const vectors = async (more) =>
  (await client.embeddings.create({ model: "embedding", input: texts, ...more })).data.map((item) => Array.from(item.embedding));
give({ base64: await vectors({}), float: await vectors({ encoding_format: "float" }) });
