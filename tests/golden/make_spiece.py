"""A tiny SentencePiece model and what its own library makes of some texts. To renew: python -m tests.golden.make_spiece

Made with sentencepiece 0.2.3.
"""

import io
import json

import sentencepiece

from mnemosyne.tasks.data.text import grammar
from tests.tasks.models import GOLDEN

TEXTS = ["this bold cat sees a dog.", "  these   quick birds chase some crows. ", "zebra & co", "", "queens"]

if __name__ == "__main__":
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(grammar(20_000).splitlines()),
        model_writer=written,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",
        num_threads=1,
    )
    (GOLDEN / "spiece.model").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    rows = {text: model.encode(text) for text in TEXTS}
    (GOLDEN / "spiece.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
