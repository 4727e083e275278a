"""The server behind ``lmaas-tune serve``: a language model as a service, with soft prompts.

::

    HTTP ─► Connections ─► AuthMiddleware ─► endpoints ────► ServedModel ─► Scheduler ──► Backend
            number,        API key,          JSON and        batches and    one thread:   any of the
            slow clients   quota, body       numbers         subspaces      fair queuing  registry
                           size, log         (wire, bodies)  of each key    among keys
                                                             └─► FairPool: reading bodies,
                                                                 inspecting and drawing

It answers log-probabilities of label words and nothing else: no endpoint returns embeddings, hidden
states, logits, p0 or A.

This does not hide the model. A key can learn everything that the answers contain, with enough
requests: any word can be a label word and any text a row, so a key can read off the model's output
distribution piece by piece and train another model on it. The answers are exact to float32;
therefore a key can also find the model's width and its output layer up to a linear map (Carlini et
al. 2024, "Stealing Part of a Production Language Model"). Soft prompts make that easier: answers
are smooth in z and in the vectors, and comparing a prompt of vectors with a text prompt shows how
near the vectors are to the words' embeddings. The more words one request names, the fewer requests
that takes: the limit `candidates` bounds them. A key's quota bounds the rate of requests, and the
metrics show the requests of each key; nothing here makes it impossible.
"""
