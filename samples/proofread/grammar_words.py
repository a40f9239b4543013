"""Small closed classes of words that the grammatical errors look at."""

from __future__ import annotations

BE = {"am", "is", "are", "was", "were", "be", "been", "being"}
HAVE = {"have", "has", "had", "having", "haven't", "hasn't", "hadn't"}
MODALS = {
    *("can", "could", "will", "would", "should", "must", "may", "might", "shall"),
    *("can't", "cannot", "couldn't", "won't", "wouldn't", "shouldn't"),
}
DID = {"did", "didn't", "does", "doesn't", "do", "don't"}
AUXILIARIES = BE | HAVE | MODALS | DID
BETWEEN = {
    "not",
    "also",
    "always",
    "never",
    "already",
    "often",
    "now",
    "only",
    "just",
    "recently",
    "still",
}  # an auxiliary and its verb

SINGULAR_SUBJECTS = {
    *("he", "she", "it", "this", "that", "which", "who", "everyone", "everybody", "nobody", "someone", "somebody"),
    *("anyone", "each", "everything", "nothing", "something"),
}
PLURAL_SUBJECTS = {"i", "you", "we", "they", "who", "people"}
CAUSES = {"let", "lets", "help", "helps", "helped", "helping", "make", "makes", "see", "watch", "to", "and", "or"}
NOT_NOUNS = {
    *("a", "an", "the", "and", "or", "but", "not", "to", "of", "in", "on", "at", "for", "with", "by", "from"),
    *("about", "into", "as", "than"),
    *("if", "when", "while", "because", "so", "that", "which", "who", "what", "how", "where", "why", "also", "more"),
    *("most", "very", "all"),
    *("i", "you", "we", "they", "he", "she", "it", "them", "us", "me", "him", "her", "my", "your", "our", "their"),
    *("his", "its"),
    *("this", "these", "those", "some", "any", "no", "each", "every", "many", "much", "other", "such", "then"),
    *("there", "here"),
}  # fmt: skip
SEVERAL = {
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty", "several", "many"),
    *("few"),
    *("various", "multiple", "both", "these", "those", "numerous"),
}  # fmt: skip
SWAPPED_VERBS = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "does": "do", "isn't": "aren't",
    "aren't": "isn't",
    "doesn't": "don't", "don't": "doesn't", "hasn't": "haven't", "haven't": "hasn't", "wasn't": "weren't",
    "weren't": "wasn't",
}  # fmt: skip

TO_FOLLOWS = {
    *("want", "wants", "wanted", "need", "needs", "needed", "able", "going", "try", "tries", "tried", "plan"),
    *("plans", "decided"),
    *("hope", "hopes", "like", "used", "way", "ways", "order", "opportunity", "ability", "how", "allow", "required"),
    *("ready"),
    *("easier", "important", "easy", "hard", "difficult", "willing", "continue", "continues", "begin", "began"),
    *("started"),
    *("you", "us", "them", "people", "users", "agencies", "time", "chance", "tools", "effort", "designed", "likely"),
}  # fmt: skip
OF_FOLLOWS = {
    *("one", "some", "many", "most", "number", "kind", "type", "types", "lot", "part", "variety", "instead"),
    *("because", "out"),
    *("all", "each", "any", "examples", "list", "set", "series", "percent", "couple", "both", "use", "sort", "range"),
}  # fmt: skip
PERSONS = {
    *("people", "person", "users", "user", "employees", "employee", "customers", "customer", "members", "member"),
    *("everyone"),
    *("someone", "anyone", "those", "veterans", "citizens", "designers", "developers", "team", "colleagues"),
    *("students"),
}  # fmt: skip
BEFORE_GERUND = {"by", "for", "of", "without", "before", "after", "from", "about", "when", "while", "instead"}
PAST_TIME = r"\b(?:last|yesterday|ago|in (?:19|20)\d\d)\b"

# A preposition at the head of a phrase, and what people put in its place.
LEADING = {
    ("at", "the end"): ["on", "in"], ("at", "the same"): ["in", "on"], ("at", "the beginning"): ["on", "in"],
    ("at", "the time"): ["on"], ("at", "the top"): ["in"], ("at", "the bottom"): ["in"], ("at", "work"): ["on", "in"],
    ("at", "least"): ["in", "on"], ("at", "home"): ["in"], ("at", "this point"): ["on"],
    ("at", "the moment"): ["in", "on"],
    ("in", "the future"): ["on", "at"], ("in", "the past"): ["on", "at"], ("in", "the world"): ["on", "of"],
    ("in", "the united"): ["on", "at"], ("in", "the country"): ["on"], ("in", "the middle"): ["at", "on"],
    ("in", "the first"): ["on"], ("in", "this case"): ["on", "at"], ("in", "order"): ["on"],
    ("in", "addition"): ["on", "at"],
    ("in", "person"): ["at", "on"], ("in", "general"): ["on", "at"], ("in", "fact"): ["at", "on"],
    ("in", "place"): ["on"],
    ("in", "their"): ["at", "on"], ("in", "which"): ["at"], ("in", "the way"): ["at"], ("in", "charge"): ["at", "on"],
    ("on", "the other"): ["in", "at"], ("on", "average"): ["in", "at"], ("on", "the website"): ["in", "at"],
    ("on", "your website"): ["in"], ("on", "the web"): ["in"], ("on", "time"): ["at"], ("on", "social"): ["in", "at"],
    ("on", "facebook"): ["in", "at"], ("on", "twitter"): ["in", "at"], ("on", "the page"): ["in", "at"],
    ("on", "a mobile"): ["in", "at"], ("on", "their own"): ["in", "by"], ("on", "your own"): ["in", "by"],
    ("on", "the internet"): ["in", "at"], ("on", "this page"): ["in", "at"], ("on", "their phones"): ["in"],
    ("for", "example"): ["by", "as"], ("for", "free"): ["on"], ("for", "the first"): ["in"], ("by", "email"): ["per"],
    ("to", "the public"): ["at"], ("from", "the beginning"): ["of"], ("with", "each"): ["to"],
    ("of", "the"): ["from", "in"],
    ("of", "our"): ["from"], ("of", "their"): ["from"], ("of", "your"): ["from"], ("during", "the"): ["while"],
}  # fmt: skip
DAYS = {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}
MONTHS = {
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
}
KNOWN_BY_THE = {
    *("same", "first", "second", "third", "last", "next", "following", "end", "most", "best", "right", "only"),
    *("whole", "past"),
    *("public", "world", "web", "internet", "future", "beginning", "middle", "top", "number", "rest", "majority"),
    *("united"),
    *("largest", "latest", "biggest", "ability", "process", "way", "time", "team", "president", "agency", "website"),
    *("fact", "federal"),
}  # fmt: skip
