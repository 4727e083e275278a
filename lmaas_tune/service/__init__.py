"""The server behind ``lmaas-tune serve``: a language model as a service, with soft prompts.

::

    HTTP ─► Connections ─► Gate ─────► endpoints ─────► Model ─────► Scheduler ─────► Backend
            how many,      key          JSON and         batches and  one thread: fair  any of the
            how slow       limits       numbers          subspaces    among keys, many  registry's
                           size, books  (wire.py)        of each key  requests a pass
                                                           └─► Aside: reading, inspecting and
                                                               drawing, turn by turn of the keys

It answers log-probabilities of label words and nothing else: no endpoint gives embeddings, hidden
states, logits, p0 or A.

What that does not prevent. Whoever may ask can learn what the answers hold, with enough
questions: any word can be a label word and any text a row, so a key can read off the model's
output distribution piece by piece, train another model on it, and, as the answers are exact to
float32, find the model's width and its output layer up to a linear map (Carlini et al. 2024,
"Stealing Part of a Production Language Model"). Soft prompts make that easier: answers are smooth
in z and in the vectors, and comparing a prompt of vectors with one of words tells how near they
are to the words' embeddings. The more words one request names, the fewer requests it takes: the
bound `candidates` says how many they may be. A key's limits say how fast that goes, and the metrics
show who asks how much; nothing here makes it impossible.
"""
