"""The texts that every case embeds: empty, odd, in several scripts, with literal special tokens, far too long."""

_ANIMALS = "The quick brown fox jumps over the lazy dog while seventeen owls watch from the old barn. "

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n\t ",
    "a",
    "Hello world",
    "The cat sat on the mat.",
    "THE CAT SAT ON THE MAT.",
    "  two  spaces  inside  and  around  ",
    "A cat\nsat\r\non\tthe mat.",
    "How do I bake sourdough bread without a dutch oven?",
    "stock prices fell sharply today after the announcement",
    "naïve café Ünïcödé Ærøskøbing İstanbul ﬁne ﬂow",
    "e\u0301 o\u0308 n\u0303 combining marks",
    "Все люди рождаются свободными и равными.",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由である。",
    "모든 인간은 태어날 때부터 자유롭다.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता प्राप्त है।",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין",
    "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "😀",
    "emoji 😀👩‍👩‍👧‍👦🇨🇭 in between",
    "1234.5 + 67,890 = 3.14e10; $5 (10%) #tag @name",
    "https://example.com/path?query=1&other=two#fragment",
    "def f(x):\n    return x ** 2  # comment",
    "<s> </s> <pad> <unk> <mask>",
    "a <pad> b",
    "[CLS] [SEP] [PAD] [UNK] [MASK]",
    "before [SEP] after [MASK] end",
    "<|endoftext|> <|im_start|>user <|im_end|> <bos> <eos>",
    "zero\u200bwidth\u00a0and\u00adsoft\ufeff marks",
    "control \x00 \x07 characters",
    "replacement \ufffd character",
    "supercalifragilisticexpialidocious" * 3,
    "x" * 250,
    "!?.,;:" * 20,
    _ANIMALS * 2,
    _ANIMALS * 4,
    _ANIMALS * 30,
    "人" * 500,
    "😀" * 200,
)

PROMPTED: tuple[str, ...] = tuple(TEXTS[i] for i in (0, 4, 5, 6, 9, 13, 14, 22, 28, 37, 39))
"""The texts that are also embedded as queries and as passages. These are enough to test prompts."""

KINDS: dict[str, tuple[str, ...]] = {"plain": TEXTS, "query": PROMPTED, "passage": PROMPTED}
"""The texts per input type; "plain" is a request without an input type."""
