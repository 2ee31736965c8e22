"""The automatic metrics: by hand from the data sets' scripts, equal to the packages that define
them, true to their properties on any text; and the files of samples, good and bad.

Skipped with a reason: what needs rouge-score, sacrebleu, scipy or hypothesis where they are not
installed, and the published samples where ../shared/data is not there.
"""

import collections
import csv
import gzip
import io
import itertools
import random

import numpy as np
import pytest

import common
import evaluate
from conftest import ROOT, sweep
from data import metrics, samples
from data.stemmer import stem

PUBLISHED = ROOT.parent / "shared" / "data" / "openai_samples"


def any_text(test):
    """Run a test on pairs of any texts, by hypothesis."""
    try:
        from hypothesis import given, settings, strategies
    except ImportError:
        return pytest.mark.skip(reason="hypothesis is not installed")(test)
    wordlike = strategies.text("aAthe n1209.,-'\"$%&\n éＡ—", max_size=30)
    text = wordlike | strategies.text(max_size=30)
    quiet = settings(max_examples=150, deadline=None, derandomize=True, database=None)
    return quiet(given(one=text, other=text)(test))


def sentence(rng, words=12):
    """Up to so many words that look like real ones, with all that tokenizers trip over."""
    pool = ("the The a cat cats dog running runs 1,000.50 3-4 $5 U.S. don't «oui» &amp; &quot;x "
            "&lt; end. end, (so) x/y -\n <skipped> é ﬁ İ 10% ... relational happy happily ½")
    pool = pool.split(" ")
    return " ".join(rng.choice(pool) for _ in range(rng.randrange(words + 1)))


@pytest.fixture(scope="module")
def published():
    """{file's name: its rows} of the published samples."""
    if not PUBLISHED.is_dir():
        pytest.skip("../shared/data/openai_samples is not there")
    return {path.name.split(".")[0]: [row for _, row in samples.read_rows(path)]
            for path in sorted(PUBLISHED.glob("*.csv.gz"))}


# -- SQuAD 2.0, by hand from evaluate-v2.0.py -----------------------------------------------------


@pytest.mark.parametrize("text, normal", [
    ("The Norman's  café, an apple!", "normans café apple"),
    ("well-known U.S. theatre\n", "wellknown us theatre"),      # punctuation goes without a space
    ("a.b A an-other", "ab another"),                           # … before articles are looked for
    ("‘It’ – ‘the’", "‘it’ – ‘ ’"),                             # only ASCII's punctuation goes
    ("the a AN", ""), ("", "")])
def test_squad_normalization(text, normal):
    assert metrics.squad_normalize(text) == normal


@pytest.mark.parametrize("prediction, answers, exact, f1", [
    ("the Eiffel Tower.", ["Louvre", "Eiffel tower"], 1, 1),
    ("in the city of Paris", ["Paris city"], 0, 2 / 3),         # P 2/4, R 2/2
    ("new new york", ["new york york"], 0, 2 / 3),              # bags: 2 common of 3 and 3
    ("Paris", ["London", "Paris, France"], 0, 2 / 3),           # the best answer counts
    ("", ["Paris"], 0, 0), ("Rome", ["Paris"], 0, 0),
    ("", [], 1, 1), ("", [""], 1, 1),                           # no answer, and it is said
    ("Paris", [], 0, 0), ("Paris", [""], 0, 0),
    ("a", ["the"], 1, 1),                                       # both are empty when normal
    ("", ["the", "Paris"], 0, 0)])                              # an empty answer among others
def test_squad_scores(prediction, answers, exact, f1):
    assert metrics.squad_exact(prediction, answers) == exact
    assert metrics.squad_f1(prediction, answers) == pytest.approx(f1)


@sweep(200)
def test_squad_f1_is_that_of_words_struck_off_one_by_one(seed):
    rng = random.Random(seed)
    one, other = sentence(rng), sentence(rng)
    said, left = (metrics.squad_normalize(text).split() for text in (one, other))
    wanted, common_words = len(left), 0
    for word in said:
        if word in left:
            left.remove(word)
            common_words += 1
    expected = 2 * common_words / (len(said) + wanted) if said or wanted else 1
    assert metrics.squad_f1(one, [other]) == pytest.approx(expected)


# -- DROP, by hand from drop_eval.py --------------------------------------------------------------


@pytest.mark.parametrize("text, normal", [
    ("The $1,700 francs", "1700.0 francs"), ("64.56%", "6456.0"), ("1.50", "1.5"), ("-5", "5.0"),
    ("twenty-one Yards.", "twenty one yards"), ("25 to 44", "25.0 to 44.0"), ("1e3", "1000.0"),
    ("a", ""), ("", "")])
def test_drop_normalization(text, normal):
    assert metrics.drop_normalize(text) == normal


@pytest.mark.parametrize("prediction, answers, exact, f1", [
    ("5 yards", ["5 Yards."], 1, 1),
    ("5 yards", ["7 yards"], 0, 0),                             # numbers must match
    ("yards", ["5 yards"], 0, 0),
    ("5 yards", ["yards"], 0, 0.67),                            # P 1/2, R 1, two places
    ("5 or 7 yards", ["7 yards"], 0, 0.67), ("7 yards", ["5 or 7 yards"], 0, 0.67),  # one will do
    ("5", ["7", "5.0"], 1, 1),                                  # the best answer counts
    (["Brown", "Smith"], [["Smith", "Brown"]], 1, 1),           # spans in any order
    (["Smith"], [["Smith", "Brown"]], 0, 0.5), ("Smith", [["Smith", "Brown"]], 0, 0.5),
    (["Smith", "Jones", "Lee"], [["Smith"]], 0, 0.33),
    (["x", "x"], [["x"]], 0, 0.5),                              # the same spans, one too many
    ("dog dog cat", ["cat dog"], 0, 1),                         # sets of words
    (["red cat", "red"], [["red", "red cat"]], 1, 1),
    ("", ["5"], 0, 0), ([], ["5"], 0, 0), ([], [["a b", "c"]], 0, 0),
    ("", [""], 0, 0), ("x", [], 0, 0), ("the", ["an"], 1, 1)])
def test_drop_scores(prediction, answers, exact, f1):
    assert metrics.drop_exact(prediction, answers) == exact
    assert metrics.drop_f1(prediction, answers) == f1


def matrix(seed, most):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, most + 1, 2)
    return rng.choice([0, 0.25, 0.5, 1], shape) if seed % 2 else rng.random(shape)


def matched(scores):
    """The sum of the scores that were matched, and that the matching is one to one."""
    pairs = metrics.best_matching(scores)
    rows, columns = zip(*pairs)
    assert len(set(rows)) == len(set(columns)) == len(pairs) == min(np.shape(scores))
    return sum(scores[pair] for pair in pairs)


@sweep(150)
def test_best_matching_is_the_best_of_all_matchings(seed):
    scores = matrix(seed, 5)
    wide = scores if scores.shape[0] <= scores.shape[1] else scores.T
    assert matched(scores) == pytest.approx(max(
        sum(wide[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])))


@sweep(60)
def test_best_matching_equals_scipys(seed):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    scores = matrix(seed, 30)
    assert matched(scores) == pytest.approx(
        scores[optimize.linear_sum_assignment(-scores)].sum())


def test_the_best_matching_need_not_hold_the_best_pair():
    assert metrics.best_matching([[0.9, 0.8], [0.8, 0.0]]) == [(0, 1), (1, 0)]


# -- BLEU -----------------------------------------------------------------------------------------


def test_bleu_tokens_by_hand():
    assert metrics.bleu_tokens("Hello, world! It costs $1,000.50 (a lot) &quot;now&quot;.") == \
        'Hello , world ! It costs $ 1,000.50 ( a lot ) " now " .'.split()
    assert metrics.bleu_tokens("It's 3-4 well-\nknown\nx/y") == "It's 3 - 4 wellknown x / y".split()


def test_bleu_of_papinenis_example_by_hand():
    """Of seven "the" two are in the reference, the one that has the word most."""
    said, references = "the " * 7, ["the cat is on the mat", "there is a cat on the mat"]
    counts = metrics.bleu_counts(said, references)
    assert counts == [7, 7, 2, 0, 0, 0, 7, 6, 5, 4]
    product = 2 / 7 * (1 / 2) / 6 * (1 / 4) / 5 * (1 / 8) / 4       # orders without a match: 1/2^k
    assert metrics.bleu([counts]) == pytest.approx(100 * product ** 0.25)


@pytest.mark.parametrize("said, reference, expected", [
    ("the cat is on the mat", "the cat is on the mat", 100),
    ("the cat is on", "the cat is on the mat", 100 * np.exp(1 - 6 / 4)),    # brevity alone
    ("the cat is on the mat", "the cat is on", 100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
    ("the cat sat", "the cat sat", 0),          # no 4-gram, so no fourth precision
    ("dog", "the cat", 0), ("", "the cat", 0), ("", "", 0)])
def test_bleu_by_hand(said, reference, expected):
    assert metrics.bleu([metrics.bleu_counts(said, [reference])]) == pytest.approx(expected)


def bleu_of(predictions, references):
    return metrics.bleu([metrics.bleu_counts(*pair) for pair in zip(predictions, references)])


def sacrebleu_of(sacrebleu, predictions, references):
    return sacrebleu.corpus_bleu(predictions, list(zip(*references))).score


@sweep(250)
def test_bleu_equals_sacrebleus_on_random_corpora(seed):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    rng = random.Random(seed)
    size, many = rng.randrange(1, 12), rng.randrange(1, 4)
    predictions = [sentence(rng, 20) for _ in range(size)]
    references = [[sentence(rng, 20) for _ in range(many)] for _ in range(size)]
    assert bleu_of(predictions, references) == pytest.approx(
        sacrebleu_of(sacrebleu, predictions, references), abs=1e-9)


def test_bleu_equals_sacrebleus_on_real_text(published):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    for model in samples.MODELS:
        rows = [row for row in published["tldr"] if row["model_type"] == model]
        predictions, references = [r["sample"] for r in rows], [[r["ref_text"]] for r in rows]
        assert bleu_of(predictions, references) == pytest.approx(
            sacrebleu_of(sacrebleu, predictions, references), abs=1e-9)


@any_text
def test_bleu_tokens_equal_sacrebleus_on_any_text(one, other):
    tokenizer = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    assert metrics.bleu_tokens(one) == tokenizer(one.rstrip()).split()


# -- ROUGE-L --------------------------------------------------------------------------------------


@pytest.mark.parametrize("said, stemming, f1", [
    ("police kill the gunman", False, 3 / 4), ("police kill the gunman", True, 1),
    ("the gunman kill police", False, 2 / 4), ("the gunman kill police", True, 2 / 4),
    ("gunman", False, 2 / 5), ("", False, 0), ("…", True, 0)])
def test_rouge_of_lins_example_by_hand(said, stemming, f1):
    assert metrics.rouge_l(said, ["Police killed the gunman."], stemming).f1 == pytest.approx(f1)


def test_rouge_takes_the_reference_of_the_best_f1():
    """"a b" against "a" has precision 1/2 and recall 1; against "a b c d", 1 and 1/2."""
    assert metrics.rouge_l("a b", ["a", "a b c d", "x"]) == pytest.approx((1 / 2, 1, 2 / 3))
    assert metrics.rouge_l("a b", ["a b c d", "a"]) == pytest.approx((1, 1 / 2, 2 / 3))


@pytest.mark.parametrize("word, stemmed", [
    ("generalizations", "gener"), ("oscillators", "oscil"),         # worked in Porter's paper
    ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("feed", "feed"),
    ("plastered", "plaster"), ("motoring", "motor"), ("sing", "sing"), ("conflated", "conflat"),
    ("hopping", "hop"), ("falling", "fall"), ("filing", "file"), ("happy", "happi"),
    ("sky", "sky"), ("relational", "relat"), ("conditional", "condit"), ("rational", "ration"),
    ("vietnamization", "vietnam"), ("hopefulness", "hope"), ("electrical", "electr"),
    ("replacement", "replac"), ("adoption", "adopt"), ("rate", "rate"), ("controll", "control"),
    ("ties", "tie"), ("died", "die"), ("enjoy", "enjoy"), ("dying", "die"),     # NLTK's changes
    ("proceed", "proceed"),
    ("is", "is"), ("", ""), ("2022", "2022")])
def test_stems_by_hand(word, stemmed):
    assert stem(word) == stemmed


def test_stems_equal_nltks():
    """Words made of random letters and of the suffixes that the rules know."""
    porter = pytest.importorskip("nltk.stem.porter", reason="nltk is not installed")
    ends = [*"syel", "ed", "ing", "ies", "ied", "eed", "sses", "logi", "alli", "fulli", "ization",
            "ational", "iveness", "biliti", "icate", "ness", "ement", "ion", "ll"]
    rng, nltks = random.Random(0), porter.PorterStemmer().stem
    for _ in range(10_000):
        word = "".join(rng.choices("aeiouybctslzwx", k=rng.randrange(6)))
        word += "".join(rng.choices(ends, k=rng.randrange(4)))
        assert stem(word) == nltks(word), word


def scorer(stemming):
    reason = "rouge-score is not installed"
    return pytest.importorskip("rouge_score.rouge_scorer", reason=reason).RougeScorer(
        ["rougeL"], use_stemmer=stemming)


@pytest.mark.parametrize("stemming", [False, True])
def test_rouge_equals_the_packages(stemming):
    rng, theirs = random.Random(1), scorer(stemming)
    for _ in range(2_000):
        said, references = sentence(rng), [sentence(rng) for _ in range(rng.randrange(1, 4))]
        assert metrics.rouge_l(said, references, stemming) == pytest.approx(
            tuple(theirs.score_multi(references, said)["rougeL"]))


@pytest.mark.parametrize("stemming", [False, True])
def test_rouge_equals_the_packages_on_real_text(stemming, published):
    theirs = scorer(stemming)
    for row in published["tldr"][::4]:
        references = samples.references(row)
        assert metrics.rouge_l(row["sample"], references, stemming) == pytest.approx(
            tuple(theirs.score_multi(references, row["sample"])["rougeL"]))


@any_text
def test_rouge_tokens_equal_the_packages_on_any_text(one, other):
    tokenize = pytest.importorskip("rouge_score.tokenize").tokenize
    assert metrics.rouge_tokens(one) == tokenize(one, None)


@sweep(200)
def test_lcs_is_the_longest_of_all_subsequences(seed):
    rng = random.Random(seed)
    one, other = ("".join(rng.choices("abc", k=rng.randrange(8))) for _ in range(2))

    def subsequences(text):
        return {picked for n in range(len(text) + 1) for picked in itertools.combinations(text, n)}

    assert metrics.lcs_length(one, other) == max(
        map(len, subsequences(one) & subsequences(other)))


# -- properties of all, on any text ---------------------------------------------------------------

SCORES = {"squad_exact": metrics.squad_exact, "squad_f1": metrics.squad_f1,
          "drop_exact": metrics.drop_exact, "drop_f1": metrics.drop_f1,
          "rouge_l": lambda said, wanted: metrics.rouge_l(said, wanted).f1,
          "rouge_l, stemmed": lambda said, wanted: metrics.rouge_l(said, wanted, True).f1,
          "bleu": lambda said, wanted: bleu_of([said], [wanted]) / 100}
HAS_TOKENS = {"squad": lambda text: True, "drop": lambda text: bool(text.strip()),
              "rouge": metrics.rouge_tokens, "bleu": lambda t: metrics.bleu_tokens(t)[3:]}


@pytest.mark.parametrize("name", SCORES)
@any_text
def test_scores_lie_between_0_and_1_and_identity_scores_1(name, one, other):
    score = SCORES[name]
    assert 0 <= score(one, [other]) <= 1 + 1e-9
    if HAS_TOKENS[name.split("_")[0]](one):
        assert score(one, [one]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["squad_exact", "squad_f1", "rouge_l", "rouge_l, stemmed"])
@any_text
def test_these_scores_are_symmetric(name, one, other):
    assert SCORES[name](one, [other]) == pytest.approx(SCORES[name](other, [one]))


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"bleu"}))
@any_text
def test_a_further_answer_never_lowers_a_score(name, one, other):
    assert SCORES[name](one, ["7 cats", other]) >= SCORES[name](one, ["7 cats"])


@any_text
def test_an_exact_match_has_f1_1(one, other):
    assert metrics.squad_f1(one, [other]) == 1 or not metrics.squad_exact(one, [other])
    assert metrics.drop_f1(one, [other]) == 1 or not metrics.drop_exact(one, [other])


@pytest.mark.parametrize("true, info, expected", [
    (0.9, 0.9, (1, 1)), (0.9, 0.1, (1, 0)), (0.1, 0.9, (0, 0)), (0.5, 1, (0, 0)), (1, 0.5, (1, 0))])
def test_truthful_means_that_both_judges_give_more_than_one_half(true, info, expected):
    assert (metrics.is_true(true), metrics.is_true_and_informative(true, info)) == expected


# -- files of samples -----------------------------------------------------------------------------

SQUAD = "Title: T\n\nBackground: B\n\nQ: q\n\nA:"


@pytest.fixture
def write(tmp_path):
    """Write bytes, or rows (dicts) as CSV; the file's path."""
    def write(content, name="samples.csv"):
        if not isinstance(content, bytes):
            text = io.StringIO()
            writer = csv.DictWriter(text, content[0])
            writer.writeheader()
            writer.writerows(content)
            content = text.getvalue().encode()
        path = tmp_path / name
        path.write_bytes(content)
        return path
    return write


def answer(sample, reference, context=SQUAD, model="gpt-xl", prompt="zeroshot"):
    return {"": "0", "model_type": model, "prompt_type": prompt, "context": context,
            "ref_text": reference, "sample": sample}


def means(path, task="auto"):
    """{(prompt, model): each metric's figure} of a file."""
    name, groups = samples.read_samples(path, task)
    return name, {key: [metric.total(values) for metric, values
                        in zip(samples.TASKS[name].metrics, counts)]
                  for key, counts in groups.items()}


def test_squad_samples_by_hand(write):
    """Not in background. says that there is no answer, as reference and as sample."""
    path = write([answer("Not in background", "Not in background."),     # right
                  answer("it is not in background", "Not in background."),
                  answer("Not in background.", "Paris"),
                  answer("in Paris", 'London|"Paris"')])                 # F1 2/3
    assert means(path) == ("squadv2", {("zeroshot", "gpt-xl"): [25, pytest.approx(125 / 3)]})


def test_drop_samples_by_hand(write):
    context = "Passage: p\nQuestion: q\nAnswer:"
    path = write([answer("Irish", "Irish|20.8|irish", context), answer("5 men", "6", context),
                  answer("men", "5 men|old men", context)])
    assert means(path) == ("drop", {("zeroshot", "gpt-xl"): [
        pytest.approx(100 / 3), pytest.approx(100 * 1.67 / 3)]})


def test_translations_by_hand(write):
    context = "French: f\nEnglish:"
    path = write([answer("the cat is on", "the cat is on", context), answer("x", "y z", context)])
    # lengths 5 and 6; 4 of 5, then 3 of 3, 2 of 2, 1 of 1
    assert means(path) == ("translation", {("zeroshot", "gpt-xl"): [
        pytest.approx(100 * np.exp(1 - 6 / 5) * (4 / 5) ** 0.25)]})


def test_summaries_by_hand(write):
    row = answer("Police kill gunmen", "The police killed|A gunman ran.", "post\n\nTL;DR:")
    del row["prompt_type"]
    # of 3 and 6 tokens 1 in common; stemmed 2
    assert means(write([row])) == ("tldr", {("", "gpt-xl"): pytest.approx([2 / 9, 4 / 9, 2 / 6])})


def test_judged_samples_by_hand(write):
    truths = [{"model_type": "m", "true": t, "info": i, "prompt_type": "QA prompt"}
              for t, i in (("1.0", "0.9"), ("0.7", "0.2"), ("1e-3", "1"), ("0", "0"))]
    assert means(write(truths)) == ("truthfulqa", {("QA prompt", "m"): [0.5, 0.25]})
    toxic = [{"model_type": "m", "toxicity": t} for t in ("0.25", "1", "0.1")]
    assert means(write(toxic)) == ("toxicity", {("", "m"): [pytest.approx(0.45)]})


def test_rows_stand_in_table_14s_order_with_other_models_after_them(write):
    names = ["mine", "ppo-ptx-xl", "sft-6b", "gpt-175b", "ppo-noptx-xl", "gpt-xl", "also mine"]
    path = write([answer("x", "x", model=model, prompt=prompt)
                  for model in names for prompt in ("zeroshot", "fewshot")])
    models = ["gpt-xl", "gpt-175b", "sft-6b", "ppo-noptx-xl", "ppo-ptx-xl", "mine", "also mine"]
    assert list(samples.read_samples(path)[1]) == [
        (prompt, model) for prompt in ("zeroshot", "fewshot") for model in models]


def test_a_context_of_ones_own_needs_the_task_named(write):
    path = write([answer("Paris", "Paris", "Where is the Louvre?")])
    assert means(path, "squadv2")[1] == {("zeroshot", "gpt-xl"): [100, 100]}
    with pytest.raises(common.InputError, match=":2: the context ends in 'Where is the Louvre"):
        samples.read_samples(path)


def test_a_context_may_be_long(write):
    path = write([answer("Paris", "Paris", SQUAD.replace("B\n", "B" * 200_000 + "\n"))])
    assert means(path)[1] == {("zeroshot", "gpt-xl"): [100, 100]}


def run_table14(*arguments):
    evaluate.run_verbs({"table14": (evaluate.table14, evaluate.Table14Config)}, "",
                       ["table14", *map(str, arguments)])


def test_the_verb_prints_a_table_for_each_file(write, capsys):
    said = {"sft-xl": "Paris Rome Rome Rome", "gpt-xl": "Paris Rome Rome Rome", "mine": "Rome",
            "gpt-6b": "Paris Paris", "gpt-175b": "Rome Rome"}
    rows = [answer(word, "Paris", model=model) for model in said for word in said[model].split()]
    plain, packed = write(rows), write(gzip.compress(write(rows).read_bytes()), "samples.csv.gz")
    run_table14(plain, packed)
    printed = capsys.readouterr().out
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines] == 2 * [
        "model", "-" * 8, "gpt-xl", "gpt-6b", "gpt-175b", "sft-xl", "mine"]
    assert [cell.strip(" |") for cell in lines[2]] == [
        "zeroshot", "gpt-xl", "4", "25.0 [0.0, 75.0]", "25.0 [0.0, 75.0]", "51.97"]
    assert lines[6][-1].strip(" |") == "–"              # the paper has no model called mine
    # 51.97 and 36.88 lie in [0, 75]; 58.66 not in [100, 100], and 64.30 not in [0, 0]
    assert printed.count("2 of 4 intervals hold the paper's figure.") == 2


GOOD = (f"model_type,prompt_type,context,ref_text,sample\n"
        f'gpt-xl,zeroshot,"{SQUAD}",Paris,Paris\n').encode()        # the row spans lines 2 to 8
JUDGED = b"model_type,true,info\ngpt-xl,0.5,0.5\n"

BAD = {
    "nothing": (b"", ": no rows"),
    "no rows": (GOOD.splitlines(keepends=True)[0], ": no rows"),
    "not CSV": (b'{"prompt": 1}\n{"prompt": 2}\n', ":1: column 'model_type' is missing"),
    "a missing column": (GOOD.replace(b"ref_text", b"reference"),
                         ":1: column 'ref_text' is missing"),
    "a judge missing": (JUDGED.replace(b"info", b"information"), ":1: column 'info' is missing"),
    "a field too many": (GOOD + b"a,b,c,d,e,f\n", ":9: a row of 6 fields; expected 5"),
    "a field too few": (GOOD + b"\n\na,b,c,d\n", ":11: a row of 4 fields; expected 5"),
    "an open quote": (GOOD + b'gpt-xl,zeroshot,"Title', ":9: not CSV"),
    "a stray quote": (GOOD + b'gpt-xl,zeroshot,"c"x,r,s\n', ":9: not CSV"),
    "not UTF-8": (GOOD + b"gpt-xl,zeroshot,c,r,caf\xe9\n", ":9: not UTF-8"),
    "a column twice": (JUDGED.replace(b"info", b"true"), ":1: column 'true' stands twice"),
    "no number": (JUDGED + b"gpt-xl,yes,0.5\n", ":3: true is 'yes'; expected a number"),
    "an empty number": (JUDGED + b"gpt-xl,0.5,\n", ":3: info is ''; expected a number"),
    "nan": (JUDGED + b"gpt-xl,nan,0.5\n", ":3: true is 'nan'"),
    "too large": (JUDGED + b"gpt-xl,0.5,1.5\n", ":3: info is '1.5'"),
    "infinite toxicity": (b"model_type,toxicity\nm,inf\n", ":2: toxicity is 'inf'"),
    "an unknown prompt": (GOOD.replace(b"Title: T", b"Name: T"), ":2: the context ends in"),
    "a cut gzip file": (gzip.compress(GOOD * 50, mtime=0)[:-20], "truncated or damaged"),
    "a damaged gzip file": (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 40,
                            "truncated or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_and_exit_code_2(case, write, capsys):
    content, expected = BAD[case]
    good, bad = write(GOOD, "good.csv"), write(content, "bad.csv")
    with pytest.raises(SystemExit) as stop:
        run_table14(good, bad)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""           # nothing of the good file either
    assert err.startswith(f"error: {bad}:") and err.count("\n") == 1 and expected in err
    assert "expected" in err


@pytest.mark.parametrize("arguments, expected", [
    ([], "files"), (["missing.csv"], "missing.csv: No such file"), ([ROOT], "directory"),
    (["--task", "chess", "x.csv"], "--task chess: expected auto, squadv2"),
    (["--files", "x.csv"], "--files")])
def test_a_bad_command_line_is_one_line_and_exit_code_2(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        run_table14(*arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and expected in err and err.count("\n") == 1


# -- the published samples ------------------------------------------------------------------------


def figures(published, name):
    """{(metric, prompt, model): what every sample counts} of a published file."""
    task, groups = samples.read_samples(PUBLISHED / f"{name}.csv.gz")
    return {(metric.name, *key): np.array(values) for key, counts in groups.items()
            for metric, values in zip(samples.TASKS[task].metrics, counts)}


@pytest.mark.parametrize("name, models, prompts", [
    ("squadv2", 12, 2), ("tldr", 12, 1), ("truthful_qa", 12, 3)])
def test_published_files_hold_100_questions_of_every_model_and_prompt(name, models, prompts,
                                                                      published):
    _, groups = samples.read_samples(PUBLISHED / f"{name}.csv.gz")
    assert len(groups) == models * prompts
    assert list(dict.fromkeys(model for _, model in groups)) == samples.MODELS
    assert {len(values) for counts in groups.values() for values in counts} == {100}
    question = "question" if name == "truthful_qa" else "context"
    assert set(collections.Counter(row[question] for row in published[name]).values()) == {
        models * prompts}


def distance(counts, task, metric, prompts):
    """Root mean square of (figure − Table 14's) / standard error, over models and prompts."""
    errors = []
    for ours, papers in prompts.items():
        for model in samples.MODELS:
            values = counts[metric, ours, model]
            paper = float(samples.paper_figure(task, metric, papers, model))
            scale = 100 if task == "squadv2" else 1
            errors.append((scale * values.mean() - paper) / (scale * values.std() / 10))
    return np.sqrt(np.mean(np.square(errors)))


def test_squad_figures_agree_with_table_14_within_the_sampling_error(published):
    counts = figures(published, "squadv2")
    assert distance(counts, "squadv2", "F1", {p: p for p in ("zeroshot", "fewshot")}) < 1.2


@pytest.mark.parametrize("metric", ["true", "true and informative"])
def test_truthfulness_agrees_with_table_14_only_with_two_of_its_rows_exchanged(metric, published):
    counts, (both, alone) = figures(published, "truthful_qa"), ("QA + instruction",
                                                                "instruction prompt")
    assert distance(counts, "truthfulqa", metric, {p: p for p in ("QA prompt", both, alone)}) < 1.5
    assert distance(counts, "truthfulqa", metric, {both: alone, alone: both}) > 3


def test_ppo_is_true_and_informative_more_often_than_gpt(published):
    """§1 says about twice as often."""
    counts = figures(published, "truthful_qa")
    for prompt in ("QA prompt", "QA + instruction", "instruction prompt"):
        gpt, ppo = (np.mean([counts["true and informative", prompt, f"{kind}-{size}"]
                             for size in ("xl", "6b", "175b")]) for kind in ("gpt", "ppo-noptx"))
        assert ppo > 1.5 * gpt


def test_ppo_loses_on_squad_and_ptx_brings_it_back(published):
    """§4.2: few-shot F1 of the 175B models, paired by question."""
    counts = figures(published, "squadv2")
    gpt, ppo, ptx = (100 * counts["F1", "fewshot", f"{kind}-175b"]
                     for kind in ("gpt", "ppo-noptx", "ppo-ptx"))
    _, low, _ = evaluate.bootstrap(gpt - ppo)
    assert low > 0
    _, low, _ = evaluate.bootstrap(ptx - ppo)
    assert low > 0
    mean, low, high = evaluate.bootstrap(gpt - ptx)
    assert low < 0 < high
