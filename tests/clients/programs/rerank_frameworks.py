from exchange import QUERY, TEXTS, URL, give
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

compressor = CohereRerank(cohere_api_key="none", base_url=URL, model="ranker", top_n=len(TEXTS))
documents = compressor.compress_documents([Document(page_content=text) for text in TEXTS], QUERY)
langchain = {document.page_content: document.metadata["relevance_score"] for document in documents}


def of_llama_index(processor):
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    ranked = processor.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    return {node.node.text: node.score for node in ranked}


jina = of_llama_index(JinaRerank(top_n=len(TEXTS), model="ranker", base_url=f"{URL}/v1", api_key="none"))
tei = of_llama_index(TextEmbeddingInference(top_n=len(TEXTS), base_url=URL, model_name="ranker"))
give(
    **{
        name: [[found[text]] for text in TEXTS]
        for name, found in (("langchain", langchain), ("jina", jina), ("tei", tei))
    }
)
