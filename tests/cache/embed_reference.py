"""What made `sidecar/cache/embed/reference.json`: vectors of the default model by PyTorch and transformers,
which share no code with what is checked against them.

    pip install torch transformers
    python tests/cache/embed_reference.py FOLDER-WITH-THE-MODEL > sidecar/cache/embed/reference.json
"""

import base64
import json
import sys

TEXTS = [
    "What is the capital of France?",
    "Which city is the capital of France?",
    "How do I reset my password?",
    "I forgot my password, what can I do?",
    "how to boil an egg",
    "Explain the difference between TCP and UDP in two sentences.",
    "Write a function in Python that returns the n-th Fibonacci number.",
    "def add(a, b):\n    return a + b  # TODO: overflow?",
    "SELECT name, COUNT(*) FROM orders WHERE total > 99.5 GROUP BY name;",
    "Is it safe to take 400 mg of ibuprofen every 6 hours?",
    "Version 3.11.7 was released on 2023-12-04; what changed since 3.10?",
    "Translate 'good morning' into German, French and Japanese.",
    "Wie ändere ich meine E-Mail-Adresse?",
    "¿Cuál es la mejor época para visitar Perú?",
    "Почему небо голубое?",
    "日本の首都はどこですか。",
    "كيف أتعلم البرمجة؟",
    "Summarise: 🚀🚀 to the moon!!! 😂",
    "NO, I did NOT ask you to delete it.",
    "x",
    "",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    (
        "The committee, which had met four times since spring without agreeing on anything but the date of its "
        "next meeting, decided on Thursday evening to ask the engineers whether the bridge could be repaired while "
        "trains were running, and what it would cost to close it for a summer instead."
    ),
    14
    * (
        "A sidecar sits beside an application and speaks for it. It keeps what it has heard, and when the same is "
        "asked again it answers by itself. "
    ),
]


def main(folder):
    import torch
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**tokens).last_hidden_state[0].mean(0)
        vector = (mean / mean.norm()).half().numpy().astype("<f2")
        rows.append({"text": text, "vector": base64.b64encode(vector.tobytes()).decode()})
    sys.stdout.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
