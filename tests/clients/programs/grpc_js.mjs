// Without a .proto file: the messages come from the server's own reflection.
import grpc from "@grpc/grpc-js";
import { GrpcReflection } from "grpc-js-reflection-client";
import { give, grpc as address, texts } from "./exchange.mjs";

const credentials = grpc.credentials.createInsecure();
const reflection = new GrpcReflection(address, credentials);
const descriptor = await reflection.getDescriptorBySymbol("inference.GRPCInferenceService");
const { inference } = descriptor.getPackageObject({ keepCase: true });
const client = new inference.GRPCInferenceService(address, credentials);
const request = {
  model_name: "embedding",
  inputs: [{ name: "text", datatype: "BYTES", shape: [texts.length, 1], contents: { bytes_contents: texts.map((text) => Buffer.from(text)) } }],
  outputs: [{ name: "embedding" }],
};
client.ModelInfer(request, (error, answer) => {
  if (error) throw error;
  const content = answer.raw_output_contents[0];
  const rows = [];
  for (let at = 0; at < content.length; ) {
    const size = content.readUInt32LE(at);
    rows.push(Array.from({ length: size / 4 }, (_, index) => content.readFloatLE(at + 4 + 4 * index)));
    at += 4 + size;
  }
  give({ infer: rows });
});
