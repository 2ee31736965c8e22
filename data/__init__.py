"""Everything about text before it reaches a model and after it has left one (§3.2, App. A, B, D).

Files       readers (the four kinds, HH-RLHF), formats (other public ones), filters, prepare (the
            command: read, filter, split, write), download
Tokens      tokenizer (encodings, the prompt/response template), batching, train_bpe
The world   world (facts, and the command), grammar, wordings, tasks and usecases (what is asked),
            people (users and demonstrations), webtext (pretraining text)
Labelers    rule (how a response is judged), labelers (simulated), label and answers (people)
Models      weights and safetensors (GPT-2's published folders), plan (memory and settings)
A run       runs (what lies in its folder), chat and terminal (its models answer), plot (pictures)
Metrics     metrics, stemmer, samples (the outputs published with the paper)
"""
