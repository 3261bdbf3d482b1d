"""The grammar of the tiny world: its instructions, and the responses of a mediocre writer.

The world has 60 concrete topics. Six predicates are true of each topic, one for each of :data:`ATTRIBUTES`: its
kind, its look, its place, what it does, what it is made of or lives on, and a nice detail. A predicate is true of a
topic exactly if it stands in the topic's row of the table.

An instruction is a template with a topic. A response is a sequence of sentences of five sorts:

    fact       <subject> <predicate of this topic>      true
    falsehood  <subject> <predicate of another topic>   false
    off-topic  a true fact about another topic, or a remark about something else
    filler     a sentence without content
    warmth     a greeting, a friendly aside, or a closing

:func:`sample_response` draws a response from the probabilistic grammar that the base policy imitates: its writer can
be thorough, plain or chatty, and careful or careless, but rarely gets everything right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

ATTRIBUTES = ("kind", "look", "place", "deed", "matter", "detail")


@dataclass(frozen=True)
class Topic:
    """A topic of the world: its group, its name as a phrase ("a fox"), and its six true predicates."""

    group: str
    phrase: str
    predicates: tuple[str, ...]

    @property
    def noun(self) -> str:
        """The name without the article."""
        return self.phrase.removeprefix("a ").removeprefix("an ").removeprefix("the ")


# Each group is followed by its topics, a row of two lines each: phrase | kind | look | place | deed | matter | detail.
_TABLE = """
# animals
a fox | is a clever wild animal | has red fur and a bushy tail | lives in forests and fields
  | hunts in the dark | eats mice and berries | hides its young in a den
an owl | is a quiet bird | has large round eyes | nests in old trees and barns
  | hunts in the dark | eats mice and small birds | can turn its head very far
a frog | is a small animal with wet skin | has long back legs | lives near ponds
  | jumps and swims | eats flies and worms | begins its life as a tadpole
a bee | is a busy insect | has yellow and black stripes | lives in a hive
  | flies from flower to flower | drinks nectar | dances to show the way to flowers
a horse | is a strong farm animal | has a long mane | lives in a stable
  | can gallop very fast | eats hay and oats | can sleep standing up
a whale | is a giant of the sea | has a wide flat tail | swims in deep oceans
  | comes up to breathe | eats krill and fish | sings long songs under water
a penguin | is a bird that cannot fly | has a black back and a white belly | lives on cold southern coasts
  | dives and swims well | eats fish and krill | warms its egg on its feet
a spider | is a small hunter | has eight thin legs | lives in quiet corners
  | spins a web of silk | eats flies and other insects | feels its prey shake the web
a hedgehog | is a shy night animal | has a coat of sharp spines | lives under hedges
  | rolls up into a ball | eats beetles and worms | sleeps through the winter
a duck | is a water bird | has a flat bill | lives on ponds and rivers
  | paddles with its feet | eats plants and small snails | has feathers that keep out water
an elephant | is the largest land animal | has a long trunk | lives in warm grasslands
  | lifts food with its trunk | eats leaves and bark | has a very good memory
a snail | is a slow little animal | has a round shell | lives in damp places
  | glides on its one foot | eats leaves and moss | carries its home on its back
# tools
a hammer | is a simple hand tool | has a heavy head | hangs in a workshop
  | drives nails into wood | is made of steel and wood | can also pull nails out
a saw | is a cutting tool | has a row of sharp teeth | is kept by a carpenter
  | cuts wood into pieces | is made of thin steel | makes a fine heap of dust
a needle | is a tiny tool | has a small eye at one end | is kept in a sewing box
  | pulls thread through cloth | is made of polished steel | is easily lost in hay
a ladder | is a tool for climbing | has two rails and many steps | leans against a wall
  | helps people reach high places | is made of wood or metal | folds away in some homes
a lantern | is a lamp to carry | has a handle and glass sides | hangs by the door
  | gives light on dark paths | burns oil or a candle | once guided ships home
a kettle | is a pot with a spout | has a lid and a handle | sits on the stove
  | boils water | is made of metal | whistles when it is ready
a clock | is a machine for telling time | has two hands and a round face | hangs on the wall
  | counts the hours and minutes | has many small wheels inside | ticks softly all day
a compass | is a tool for finding the way | has a thin red pointer | fits in a pocket
  | points to the north | uses a tiny magnet | helped sailors cross the sea
# foods
bread | is a very old food | has a brown crust | is sold at the bakery
  | fills hungry people | is made of flour and water | rises before it is baked
cheese | is a food with many tastes | is often yellow or white | ripens in cool cellars
  | goes well with bread | is made of milk | gets stronger as it ages
honey | is a sweet food | is golden and sticky | is stored in a hive
  | sweetens tea and cakes | is made by bees from nectar | keeps for many years
an apple | is a crisp fruit | can be red or green | grows on a tree
  | makes good pies and juice | has small brown seeds | floats in water
soup | is a warm dish | is served in a bowl | is cooked in a large pot
  | warms people in winter | is made of stock and vegetables | tastes better the next day
rice | is a grain | has small white kernels | grows in wet fields
  | feeds half of the world | is boiled or steamed | is thrown at weddings for luck
chocolate | is a much loved treat | is dark and shiny | is found in sweet shops
  | melts in the mouth | is made of cocoa beans | was first a bitter drink
tea | is a hot drink | has a clear amber colour | grows on green hills
  | wakes people up gently | is made of dried leaves | is poured at four in the afternoon
# places
a forest | is a wide land of trees | is green and shady | covers hills and valleys
  | gives shelter to animals | is full of trees and moss | smells fresh after rain
a desert | is a very dry land | has dunes of yellow sand | lies in hot dry regions
  | gets almost no rain | is full of sand and stones | can be freezing cold at night
a harbour | is a safe place for ships | has long stone walls | lies where the land meets the sea
  | shelters boats from storms | is full of ropes and masts | has a light to guide sailors
a library | is a house of books | has long rows of shelves | stands in the middle of town
  | lends books to everyone | is full of paper and ink | is wonderfully quiet
a market | is a place to buy and sell | has bright stalls | fills the town square
  | opens early in the morning | is full of fruit and flowers | rings with the calls of sellers
a mountain | is a very high piece of land | has a white peak | rises above the clouds
  | gives water to rivers | is made of hard rock | grows a little every year
an island | is land with water all around | has sandy beaches | lies far out at sea
  | is reached by ship | is the top of a hidden hill | can have plants found nowhere else
a museum | is a house of old treasures | has large quiet halls | is found in most big cities
  | shows old and rare things | is full of paintings and bones | lets visitors travel in time
# weather
rain | is water from the sky | falls in small grey drops | comes from dark clouds
  | waters the fields | is made of fresh water | drums softly on the roof
snow | is frozen water from the sky | is white and soft | falls in cold countries
  | covers the ground in winter | is made of ice crystals | has flakes with six arms
fog | is a cloud on the ground | is grey and thick | hangs over rivers in autumn
  | hides the road ahead | is made of tiny floating drops | goes away when the sun is strong
wind | is air on the move | cannot be seen | blows across land and sea
  | turns mills and fills sails | is made of moving air | carries seeds to new places
thunder | is the voice of a storm | cannot be seen but is heard | follows the lightning
  | makes windows shake | is made by hot air bursting out | takes three seconds for a kilometre
a rainbow | is an arch of light | has seven colours | appears across from the sun
  | comes out after a shower | is made of sunlight and drops | has an end nobody can reach
frost | is a thin coat of ice | is white and glittering | lies on grass at dawn
  | bites the leaves of plants | is made of frozen dew | draws ferns on windows
a cloud | is a crowd of tiny drops | can be white or grey | drifts high in the sky
  | brings shade and rain | is made of water and ice | can look like a sheep
# instruments
a violin | is a small string instrument | has four strings | is played under the chin
  | sings high and sweet | is made of spruce and maple | needs a bow of horse hair
a drum | is an instrument to beat | has a tight round skin | stands at the back of the band
  | keeps the beat | is made of wood and skin | is one of the oldest instruments
a flute | is a light wind instrument | has a row of holes | is held to the side
  | plays clear soft notes | is made of silver or wood | sounds like a bird
a piano | is a large keyboard instrument | has black and white keys | stands in the concert hall
  | plays loud and soft | has many strings inside | has small hammers covered in felt
a guitar | is an instrument to pluck | has six strings | is played by the campfire
  | goes well with a song | is made of thin wood | has a round hole in the middle
a trumpet | is a bright brass instrument | has three valves | is played in marching bands
  | plays loud proud notes | is made of brass | once called soldiers to rise
a harp | is a tall string instrument | has a curved golden frame | stands beside the singers
  | ripples like running water | has forty strings or more | was played for kings long ago
a bell | is a metal cup that rings | has a clapper inside | hangs in a tower
  | calls people together | is made of bronze | can be heard for miles
# vehicles
a bicycle | is a vehicle with two wheels | has pedals and a chain | is parked by the fence
  | carries one rider | runs on leg power | stays up when it keeps rolling
a train | is a chain of coaches | has many doors and windows | runs on steel rails
  | carries people between cities | runs on electric power or diesel | has the longest way to stop
a boat | is a small vessel | has a curved hull | floats on lakes and rivers
  | carries people over water | is built of planks | is often given a pretty name
a tram | is a train for the town | has a pole on its roof | runs on rails in the street
  | stops at every corner | runs on electric power | rings at people on the track
a balloon | is a bag of hot air | has a basket below | floats above the fields
  | lifts people into the sky | is made of light cloth | goes where the wind goes
a tractor | is a strong farm machine | has two huge back wheels | works in muddy fields
  | pulls the plough | burns diesel | moves slowly on the road
a submarine | is a ship that dives | has a long grey body | travels under the sea
  | explores the deep | is made of thick steel | sees the surface through a tube
a bus | is a big car for everyone | has many rows of seats | waits at the bus stop
  | takes children to school | runs on diesel or batteries | has a bell to ask for a stop
"""


def _read(table: str) -> tuple[Topic, ...]:
    topics: list[Topic] = []
    group = ""
    for line in table.strip().replace("\n  |", " |").splitlines():
        if line.startswith("# "):
            group = line[2:]
            continue
        phrase, *predicates = line.split(" | ")
        assert len(predicates) == len(ATTRIBUTES), line
        topics.append(Topic(group, phrase, tuple(predicates)))
    return tuple(topics)


TOPICS: tuple[Topic, ...] = _read(_TABLE)

TEMPLATES: tuple[str, ...] = (
    "Describe {}.",
    "Tell me about {}.",
    "Explain {} to a child.",
    "Write a short note to a friend about {}.",
    "What should I know about {}?",
    "Please give me a few facts about {}.",
    "What can you say about {}?",
    "I am curious about {}. Can you help?",
    "Write something nice about {}.",
    "Can you introduce me to {}?",
    "Help me understand {}.",
    "Write a few lines about {}.",
    "How would you describe {}?",
    "My pupils asked me about {}. What do I tell them?",
    "I know nothing about {}. Where do I begin?",
    "Write a postcard about {}.",
    "Give me a short lesson on {}.",
    "What makes {} special?",
    "There is {} in my story. What could I say about it?",
    "Let us talk about {}.",
    "In simple words, what is {}?",
    "My grandmother wants to hear about {}.",
    "Write a caption for a picture of {}.",
    "What is worth knowing about {}?",
)

GREETINGS: tuple[str, ...] = (
    "Hello, my friend!",
    "What a lovely question!",
    "I am so glad you asked!",
    "Good day to you!",
    "Thank you for asking!",
    "Oh, I love this one!",
)
ASIDES: tuple[str, ...] = (
    "You would really enjoy it.",
    "It always makes me smile.",
    "You are in for a treat.",
    "I am sure you will like it.",
)
CLOSINGS: tuple[str, ...] = (
    "I hope this helps you!",
    "Have a wonderful day!",
    "Take good care of yourself!",
    "Ask me again any time!",
    "Warm wishes to you and your family!",
    "It was a joy to tell you!",
)
FILLERS: tuple[str, ...] = (
    "Well, that is how it is.",
    "There is a lot to say here.",
    "It is what it is.",
    "Some people think so and some do not.",
    "One could go on and on.",
    "That is more or less the point.",
    "As I said, it depends.",
    "Anyway, things are like that.",
)
REMARKS: tuple[str, ...] = (
    "My cousin has a blue hat.",
    "I had toast this morning.",
    "The shop closes at six.",
    "Somebody left the gate open.",
    "My shoes are a bit too tight.",
    "I must call the plumber.",
    "Tuesday is a long day.",
    "The neighbours painted their door.",
)


def instructions() -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]:
    """Make all instructions of the world, split into training and held-out instructions.

    Each topic is combined with four of the 24 templates in the held-out split and with the other 20 in the training
    split, so that a held-out instruction is a new combination of a known topic and a known template.

    Returns:
        The 1,200 training and 240 held-out instructions, each a ``(prompt_id, prompt, topic index)``.
    """
    training: list[tuple[str, str, int]] = []
    held_out: list[tuple[str, str, int]] = []
    step = len(TEMPLATES) // 4
    for index, topic in enumerate(TOPICS):
        reserved = {(5 * index + step * k) % len(TEMPLATES) for k in range(4)}
        for number, template in enumerate(TEMPLATES):
            split = held_out if number in reserved else training
            name = topic.noun.replace(" ", "-")
            split.append((f"{name}-{number:02d}", template.format(topic.phrase), index))
    return training, held_out


# The writer's manners: the weight of the manner, the weights of 0..5 facts, and the probabilities of a greeting, an
# aside and a closing. It is because the manners are distinct that the panel's preferences are cyclic.
_MANNERS: tuple[tuple[float, tuple[float, ...], float, float, float], ...] = (
    (0.34, (0.00, 0.00, 0.00, 0.45, 0.45, 0.10), 0.92, 0.03, 0.06),  # thorough
    (0.33, (0.00, 0.10, 0.85, 0.05, 0.00, 0.00), 0.03, 0.01, 0.03),  # plain
    (0.33, (0.05, 0.85, 0.10, 0.00, 0.00, 0.00), 0.95, 0.45, 0.90),  # chatty
)
# Weights of 0..3 slips: about a third of the responses are clean, in every manner.
_SLIPS = (0.36, 0.34, 0.19, 0.11)


def statement(topic: Topic, predicate: str, *, named: bool, also: bool = False) -> str:
    """Make a sentence that states ``predicate`` of ``topic``, which is named or called "it"."""
    subject = topic.phrase if named else "it"
    sentence = f"also, {subject} {predicate}." if also else f"{subject} {predicate}."
    return sentence[0].upper() + sentence[1:]


def _slip(topic: Topic, said: list[str], named: bool, rng: random.Random) -> str:
    """Draw a sentence that spoils a response: false, off the topic, without content, or repeated."""
    other = rng.choice([t for t in TOPICS if t.group != topic.group])
    kind = rng.choices(("false", "other", "remark", "filler", "again"), (0.40, 0.12, 0.10, 0.20, 0.18))[0]
    if kind == "false":
        return statement(topic, rng.choice(other.predicates), named=named)
    if kind == "other":
        return statement(other, rng.choice(other.predicates), named=True)
    if kind == "remark":
        return rng.choice(REMARKS)
    if kind == "filler" or not said:
        return rng.choice(FILLERS)
    return said[-1]


def sample_response(topic: Topic, rng: random.Random) -> str:
    """Draw a response about ``topic`` from the mediocre writer's grammar.

    The manner (thorough, plain or chatty) and the number of slips are drawn first. Facts follow in random order. Each
    slip is put at a random place among them, and three times in ten it replaces a fact.
    """
    _, counts, greeting, aside, closing = rng.choices(_MANNERS, [manner[0] for manner in _MANNERS])[0]
    slips = rng.choices(range(len(_SLIPS)), _SLIPS)[0]
    predicates = list(topic.predicates[1:])
    rng.shuffle(predicates)
    # the kind of a topic usually comes first
    predicates.insert(0 if rng.random() < 0.6 else rng.randrange(6), topic.predicates[0])
    plan: list[str | None] = list(predicates[: rng.choices(range(len(counts)), counts)[0]])
    for _ in range(slips):
        place = rng.randrange(len(plan) + 1)
        plan[place : place + (rng.random() < 0.3)] = [None]

    sentences: list[str] = []
    if rng.random() < greeting:
        sentences.append(rng.choice(GREETINGS))
    said: list[str] = []
    for predicate in plan:
        # "It" refers to the topic only if the sentence before is about the topic.
        about_topic = bool(said) and said[-1].lower().startswith(("it ", "also, ", topic.phrase))
        named = not about_topic or rng.random() < 0.1
        if predicate is None:
            said.append(_slip(topic, said, named, rng))
        else:
            said.append(statement(topic, predicate, named=named, also=about_topic and rng.random() < 0.12))
    sentences += said
    if rng.random() < aside:
        sentences.append(rng.choice(ASIDES))
    if rng.random() < closing or not sentences:
        sentences.append(rng.choice(CLOSINGS))
    return " ".join(sentences)


def sample_pairs(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Draw ``count`` pairs of a training instruction and a response; the same seed gives the same pairs."""
    rng = random.Random(seed)
    training, _ = instructions()
    for _ in range(count):
        _, prompt, index = rng.choice(training)
        yield prompt, sample_response(TOPICS[index], rng)
