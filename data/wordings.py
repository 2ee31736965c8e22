"""How people of the world word what they ask: questions, clauses, frames and constraints.

Only wordings stand here; data/tasks.py makes tasks of them. Question i of an attribute is
answered by form i of FACTS (data/grammar.py).
"""

QUESTIONS = {
    ("person", "town"): ("Where does {person} live?", "In which town is the home of {person}?"),
    ("person", "job"): ("What job does {person} have?", "What does {person} work as?"),
    ("person", "animal"): ("What pet does {person} have?", "Which animal does {person} keep?"),
    ("person", "food"): ("What food does {person} like?", "What does {person} eat?"),
    ("person", "colour"): ("What colour does {person} wear?",
                           "What colour is the hat of {person}?"),
    ("animal", "place"): ("Where does the {animal} live?", "Where does the {animal} sleep?"),
    ("animal", "food"): ("What does the {animal} eat?", "What food does the {animal} like?"),
    ("animal", "colour"): ("What colour is the {animal}?",
                           "What colour is the coat of the {animal}?"),
    ("town", "side"): ("Where is {town}?", "Where does {town} lie?"),
    ("town", "food"): ("What does {town} sell?", "What food is {town} known for?"),
    ("town", "place"): ("What place does {town} have?", "What place is {town} near?"),
}
CLAUSES = {
    ("person", "town"): ("where {person} lives", "in which town the home of {person} is"),
    ("person", "job"): ("what job {person} has", "what {person} works as"),
    ("person", "animal"): ("what pet {person} has", "which animal {person} keeps"),
    ("person", "food"): ("what food {person} likes", "what {person} eats"),
    ("person", "colour"): ("what colour {person} wears", "what colour the hat of {person} is"),
    ("animal", "place"): ("where the {animal} lives", "where the {animal} sleeps"),
    ("animal", "food"): ("what the {animal} eats", "what food the {animal} likes"),
    ("animal", "colour"): ("what colour the {animal} is",
                           "what colour the coat of the {animal} is"),
    ("town", "side"): ("where {town} is", "where {town} lies"),
    ("town", "food"): ("what {town} sells", "what food {town} is known for"),
    ("town", "place"): ("what place {town} has", "what place {town} is near"),
}
PREMISES = {    # with a wrong value, a question whose premise is false
    ("person", "town"): "Why does {person} live in {town}?",
    ("person", "job"): "Why is {person} a {job}?",
    ("person", "animal"): "Why does {person} have a {animal}?",
    ("person", "food"): "Why does {person} like {food}?",
    ("person", "colour"): "Why does {person} wear {colour}?",
    ("animal", "place"): "Why does the {animal} live in the {place}?",
    ("animal", "food"): "Why does the {animal} eat {food}?",
    ("animal", "colour"): "Why is the {animal} {colour}?",
    ("town", "side"): "Why is {town} in the {side}?",
    ("town", "food"): "Why does {town} sell {food}?",
    ("town", "place"): "Why does {town} have a {place}?",
}
EVENT_QUESTIONS = {"went": "Where did {person} go?", "saw": "What did {person} see?",
                   "ate": "What did {person} eat?", "met": "Who did {person} meet?",
                   "found": "What did {person} find?"}
TOPICS = {("person", "town"): "home", ("person", "job"): "job", ("person", "animal"): "pet",
          ("person", "food"): "food", ("person", "colour"): "hat", ("animal", "place"): "home",
          ("animal", "food"): "food", ("animal", "colour"): "coat", ("town", "side"): "side",
          ("town", "food"): "food", ("town", "place"): "place"}

# Frames: {} is a clause, a question, or the thing that is asked for.
ASK_CLAUSE = ("Tell me {}.", "Please tell me {}.", "Do you know {}?", "Can you tell me {}?",
              "I want to know {}.", "I need to know {}.", "I would like to know {}.")
ASK_QUESTION = ("Question: {}", "Answer this: {}", "My question is: {}", "{} Tell me.",
                "Can you help me? {}")
ASK_PREMISE = ("{} Tell me.", "Tell me this. {}", "My question is: {}", "Can you help me? {}",
               "I want to know: {}")
WRITE = ("Write {}.", "Please write {}.", "Can you write {}?", "I need {}.", "I want {}.",
         "Give me {}.", "Could you write {} for me?", "Write me {}.", "Help me write {}.",
         "I would like {}.")
LIST = ("List {}.", "Name {}.", "Give me {}.", "Tell me {}.", "I need {}.", "Please list {}.",
        "Can you list {}?", "Can you think of {}?", "Help me find {}.", "I would like {}.")
WORK_ON = ("{}: {}", "Please {}: {}", "Can you {}: {}", "Help me {}: {}", "I want you to {}: {}")
SUM_UP = ("sum up this text", "give me the short form of this text", "say this in one sentence",
          "make this text short")
PUT_FOR = ("put {new} for {old}", "use {new} and not {old}", "turn {old} into {new}")
TO_CAPITALS = ("write this in capital letters", "put this in capital letters",
               "use capital letters")
TO_PRONOUN = ("put {} for the name", "use {} and not the name")
TO_KIND = ("make this kind", "say this in a kind way", "turn this into kind words")
TO_POLITE = ("make this polite", "say this in a polite way", "ask for this with please")
DEMANDS = ("Give me {}.", "Hand me {}.", "Pass me {}.", "Get me {}.")
READ = ("{} {}", "Read this: {} {}", "{} Question: {}", "Text: {} {}", "Here is a text. {} {}")

CLASSES = ("animal", "food", "town", "colour", "job", "place")
KIND_OR_RUDE = ("Is this kind or rude: {}", "Kind or rude: {}",
                "Tell me if this is kind or rude: {}", "{} Is that kind or rude?",
                "Is this line kind or rude: {}", "Say kind or rude: {}")
TRUE_OR_FALSE = ("Is this true or false: {}", "True or false: {}", "{} Is that true or false?",
                 "Tell me if this is true or false: {}")
WHICH_CLASS = ("Is {} the name of a {} or a {}?", "What is {}, a {} or a {}?",
               "Word: {}. Is it a {} or a {}?", "Put {} in its class, {} or {}.",
               "Tell me if {} is a {} or a {}.")
GREET = ("Say hello to {}.", "Say hello to my friend {}.", "Greet {}.", "{} is here. Say hello.",
         "I am with {}. Say hello to {}.")
COPIED = ("animal", "food", "thing", "place")
COPY = ("Repeat these words: {}", "Say this again: {}", "Copy this: {}", "Repeat after me: {}")
TIMES = ("Say {} {} times.", "Write {} {} times.", "Give me {} {} times.", "Repeat {} {} times.")
FIRST_EXCHANGES = (
    ("I am {}, hello.", "Hello, {}."), ("Hi, {} here.", "Hello, {}."),
    ("{} is my name.", "Hello, {}. How can I help?"), ("Do you know {}?", "Of course."),
    ("I met {} today.", "I am glad to hear that."), ("I want to help {}.", "Of course."))
MANNER = ("Be {}. ", "Be {} now. ")

SENTENCE = ("a sentence about", "a line about", "a fact about", "a few words on")
LINE = ("a sentence", "a line", "a few words")
SEVERAL = ("{} sentences about", "{} lines about", "{} facts about")
STORY = ("a story about {} and {}", "a short story with {} and {}", "a little story of {} and {}",
         "a tale about {} and {}")
READERS = ("for {person}", "to read to {person}", "that {person} could read",
           "for a card to {person}", "for a book about {town}")
OPINION = ("a sentence about", "a line about", "a few words on")
KIND = ("a kind line about", "a kind sentence about", "something kind about", "kind words on")
RUDE = ("a rude line about", "a rude sentence about", "something rude about", "rude words on")
THANKS = ("a note from {} to {} to say thank you for the {}",
          "a note in which {} says thank you to {} for the {}",
          "a card from {} to {} with thanks for the {}")
INVITE = ("a note from {} that asks {} to come to {}", "a card in which {} asks {} to come to {}")
ADVERT = ("an ad for {} from {}", "an ad that sells {} in {}")

PLURALS = {"animal": "animals", "food": "foods", "colour": "colours", "job": "jobs",
           "place": "places", "thing": "things", "town": "towns", "person": "names"}
PURPOSES = {    # of a list, with whom it is for: {person}, or another slot
    "animal": ("to see with {person}", "for a story about {person}", "that {person} could keep",
               "to look for in the {place}"),
    "food": ("for a feast with {person}", "to cook for {person}", "to eat in {town}",
             "to give to the {animal}"),
    "colour": ("for the hat of {person}", "for a {thing}", "that {person} could wear",
               "for a house in {town}"),
    "job": ("for {person}", "that {person} could do", "to find in {town}"),
    "place": ("to go to with {person}", "where {person} could walk", "to look for the {animal}"),
    "thing": ("to give to {person}", "that {person} could buy", "to find in the {place}",
              "to buy in {town}"),
    "town": ("to see with {person}", "that {person} could go to", "to look for {food}"),
    "person": ("for a {animal}", "for a story about {town}", "for a {job}"),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}

CONSTRAINTS = {
    "capitals": ("Use capital letters.", "Write in capital letters.", "In capital letters."),
    "max_words": ("Use at most {} words.", "In at most {} words.", "No more than {} words."),
    "start": ("Start with {}.", "Start with the word {}.", "The first word is {}."),
    "one_word": ("Answer in one word.", "One word will do.", "Just one word."),
    "items": ("As a list of {}.", "Make it a list of {}.", "A list of {} will do."),
}
GREETINGS = ("Hello.", "Hi there.", "Good day.", "Please help me.")
THANKING = ("Thank you.", "Thanks.", "Many thanks.", "Thanks a lot.")
