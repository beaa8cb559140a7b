"""Words of texts, by their stems."""

from __future__ import annotations

import re
from collections.abc import Iterator

import Stemmer

_WORD = re.compile(r"\b[^\W\d_]+(?:'[^\W\d_]+)*\b")
_SHORTEST = 2

# fmt: off
FUNCTION_WORDS = frozenset(
    [
        "a", "about", "above", "across", "after", "again", "against", "all", "almost", "along",
        "already", "also", "although", "always", "am", "among", "an", "and", "another", "any",
        "anybody", "anyone", "anything", "are", "aren't", "around", "as", "at", "away", "be",
        "because", "been", "before", "behind", "being", "below", "beside", "besides", "between",
        "beyond", "both", "but", "by", "came", "can", "can't", "cannot", "come", "could",
        "couldn't", "did", "didn't", "do", "does", "doesn't", "doing", "don't", "done", "down",
        "during", "each", "either", "else", "enough", "even", "ever", "every", "everyone",
        "everything", "few", "first", "for", "from", "get", "gets", "getting", "give", "given",
        "go", "goes", "going", "gone", "got", "had", "hadn't", "has", "hasn't", "have", "haven't",
        "having", "he", "he'd", "he'll", "he's", "her", "here", "hers", "herself", "him", "himself",
        "his", "how", "however", "i", "i'd", "i'll", "i'm", "i've", "if", "in", "instead", "into",
        "is", "isn't", "it", "it'd", "it'll", "it's", "its", "itself", "just", "last", "least",
        "less", "let", "like", "made", "make", "makes", "many", "may", "me", "might", "mine",
        "more", "most", "much", "must", "my", "myself", "neither", "never", "no", "nobody", "none",
        "nor", "not", "nothing", "now", "of", "off", "often", "on", "once", "one", "ones", "only",
        "onto", "or", "other", "others", "otherwise", "our", "ours", "ourselves", "out", "over",
        "own", "per", "perhaps", "put", "quite", "rather", "really", "same", "say", "says",
        "second", "see", "seem", "seems", "several", "shall", "she", "she'd", "she'll", "she's",
        "should", "shouldn't", "since", "so", "some", "somebody", "someone", "something",
        "sometimes", "soon", "still", "such", "than", "that", "that's", "the", "their", "theirs",
        "them", "themselves", "then", "there", "there's", "these", "they", "they'd", "they'll",
        "they're", "they've", "thing", "things", "third", "this", "those", "though", "three",
        "through", "thus", "till", "to", "together", "too", "toward", "towards", "two", "under",
        "until", "up", "upon", "us", "very", "via", "was", "wasn't", "we", "we'd", "we'll", "we're",
        "we've", "went", "were", "weren't", "what", "what's", "whatever", "when", "where",
        "whether", "which", "while", "who", "who's", "whom", "whose", "why", "will", "with",
        "within", "without", "won't", "would", "wouldn't", "yes", "yet", "you", "you'd", "you'll",
        "you're", "you've", "your", "yours", "yourself", "yourselves",
    ]
)
# fmt: on
"""English words that name nothing and praise nothing. Longer lists, such as scikit-learn's, hold
"thin", "thick", "top" and "fire", of which customers do speak."""


def words_with_stems(text: str) -> Iterator[tuple[str, str]]:
    """Yields each word in lower case with its stem (Snowball English), in the order of the text.

    Words of letters alone, two or more ("20cm" is none), without the function words.
    """
    words = [
        word
        for word in _WORD.findall(text.lower().replace("’", "'"))
        if len(word) >= _SHORTEST and word not in FUNCTION_WORDS
    ]
    yield from zip(words, Stemmer.Stemmer("english").stemWords(words), strict=True)
