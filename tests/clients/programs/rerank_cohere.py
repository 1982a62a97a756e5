import cohere
from exchange import QUERY, TEXTS, URL, give

new = cohere.ClientV2(api_key="none", base_url=URL)
answer = new.rerank(model="ranker", query=QUERY, documents=TEXTS)
best = new.rerank(model="ranker", query=QUERY, documents=TEXTS, top_n=1, max_tokens_per_doc=100).results
assert [one.index for one in best] == [answer.results[0].index]
old = cohere.Client(api_key="none", base_url=URL)
first = old.rerank(model="ranker", query=QUERY, documents=TEXTS, return_documents=True)
assert [one.document.text for one in first.results] == [TEXTS[one.index] for one in first.results]


def scores(results):
    found = {one.index: one.relevance_score for one in results}
    return [[found[row]] for row in range(len(TEXTS))]


give(v2=scores(answer.results), v1=scores(first.results))
