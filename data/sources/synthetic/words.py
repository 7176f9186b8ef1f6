"""Word lists of the synthetic corpus: subjects, audiences, names, code and maths vocabulary."""

from __future__ import annotations

SUBJECTS = """
photosynthesis|compound interest|plate tectonics|the water cycle|public-key cryptography|inflation
|gradient descent|the French Revolution|vaccination|supply and demand|black holes|sourdough baking
|database indexing|the immune system|blockchain|jet engines|recursion|the Silk Road|noise-cancelling
headphones|antibiotic resistance|the electoral college|garbage collection in programming languages
|neural networks|the greenhouse effect|quantum entanglement|mortgage refinancing|the Renaissance
|TCP congestion control|fermentation|DNA replication|Bayesian inference|the Cold War|solar panels
|version control|emotional intelligence|the stock market|chess openings|intermittent fasting
|containerisation|the Roman aqueducts|sleep cycles|credit scores|machine translation|coral reefs
|operating-system scheduling|probability distributions|urban planning|electric vehicles|jazz harmony
|consumer psychology|wind turbines|map projections|the placebo effect|load balancing|tea ceremonies
|game theory|hash tables|soil erosion|contract law|colour theory|remote work|marathon training
|the Industrial Revolution|error-correcting codes|volcanoes|search engines|meditation|typography
|monetary policy|honey bees|earthquake engineering|the periodic table|cloud computing|screenwriting
|glaciers|negotiation|composting|satellite navigation|microservices|allergies|archaeological dating
|behavioural economics|bridge design|the human microbiome|caching|perspective in painting|tides
|renewable energy storage|software testing|migration of birds|insurance|the printing press|knots
|distributed consensus|nutrition labels|time zones|water purification|opera|desalination
"""
ASPECTS = """
how it works|why it matters|its history|its main limits|common misconceptions about it|its costs
|its effect on everyday life|how experts measure it|where it is heading|the trade-offs involved
|how it is taught|its key terms|who benefits from it|what can go wrong with it
"""
AUDIENCES = """
a ten-year-old|a first-year student|a busy manager|a curious adult|an expert in another field
|a high-school class|someone who has never heard of it|a new employee|a sceptical friend
"""
LISTABLE = """
ways to save money on {}|questions to ask about {}|facts about {}|myths about {}|tips for learning
about {}|books a beginner in {} might want|risks connected with {}|analogies for {}|project ideas
around {}|interview questions about {}|slogans for an event on {}|titles for a blog post on {}
|terms everyone discussing {} should know|milestones in the story of {}
"""
WRITINGS = """
a short story|a poem|a formal email|a product description|a speech|a blog post|a press release
|a cover letter|a news article|a dialogue|a limerick|a song|an opinion piece|a diary entry
"""
TONES = "friendly|formal|humorous|enthusiastic|neutral|dramatic|persuasive|calm|ironic"
CITIES = """
Lisbon|Nairobi|Osaka|Toronto|Kraków|Lima|Hanoi|Dublin|Accra|Denver|Oslo|Izmir|Pune|Quito|Perth
|Tallinn|Valencia|Busan|Rabat|Leeds
"""
PEOPLE = """
Amara|Tomas|Yuki|Leila|Bruno|Ingrid|Kofi|Mei|Rafael|Sana|Viktor|Noor|Elena|Jonas|Priya|Mateo
|Hana|Oscar|Zofia|Idris|Clara|Emeka|Lucia|Anders
"""
COMPANIES = """
Northwind Foods|Brightwell Energy|Halden Robotics|Marlow & Finch|Cedar Health|Aster Logistics
|Quill Media|Tideline Shipping|Kestrel Air|Orchard Bank|Pinnacle Paints|Vega Instruments
"""
GOODS = """
solar pumps|oat biscuits|hearing aids|delivery drones|insulation panels|language courses|cargo bikes
|water filters|office chairs|weather sensors|winter coats|board games
"""
LANGUAGES = "French|German|Spanish|Italian|Japanese|Portuguese|Dutch|Polish|Swahili|Korean|Turkish"
CODE_LANGUAGES = "Python|JavaScript|Java|Go|Rust|C++|TypeScript|SQL|Ruby|C#"
FUNCTION_GOALS = """
reverses the words of a sentence|checks whether a string is a palindrome|merges two sorted lists
|finds the longest common prefix of a list of strings|computes the n-th Fibonacci number
|validates an email address|parses a CSV line with quoted fields|counts the words in a text file
|rotates a matrix by 90 degrees|finds all anagrams in a list of words|converts Roman numerals
|flattens a nested list|computes the median of a stream of numbers|solves a sudoku grid
|topologically sorts a dependency graph|finds the shortest path in a weighted graph
|groups orders by customer and sums their totals|removes duplicates while keeping the order
|generates all permutations of a list|implements binary search|formats a duration in seconds
|detects a cycle in a linked list|evaluates an arithmetic expression with parentheses
|downloads a list of URLs concurrently|finds the k most frequent items|encodes a string run-length
|computes the edit distance between two strings|splits a bill with tips between friends
|schedules meetings without overlaps|converts a number to English words|compresses consecutive dates
|retries a failing call with exponential back-off|masks credit card numbers in a log line
"""
CLASS_GOALS = """
an LRU cache|a bank account|a priority queue|a rate limiter|a text tokenizer|a matrix|a parking lot
|a shopping cart|a thread-safe counter|an event bus|a trie|a chess board|a state machine
|a connection pool|a bloom filter|a job scheduler|a vending machine|an inventory|a ring buffer
|a graph with weighted edges|a library catalogue|a spreadsheet
"""
METHODS = """
add|remove|clear|to_json|from_json|merge|find|resize|validate|iterate|snapshot|undo|statistics
|export|import_file|rename|filter|sort
"""
TOOLS = {
    "get_weather": ("city", "unit", "day"),
    "book_flight": ("origin", "destination", "date", "passengers", "cabin"),
    "search_products": ("query", "max_price", "sort_by"),
    "send_email": ("to", "subject", "body"),
    "create_event": ("title", "start", "end", "location", "attendees"),
    "convert_currency": ("amount", "from", "to"),
    "set_alarm": ("time", "label"),
    "find_restaurant": ("city", "cuisine", "party_size", "time"),
    "run_query": ("sql", "database"),
    "transfer_money": ("from_account", "to_account", "amount", "currency"),
    "translate": ("text", "target_language"),
    "track_parcel": ("tracking_number",),
    "play_music": ("artist", "album", "volume"),
    "order_ticket": ("event", "seats", "section"),
    "open_issue": ("repository", "title", "body", "labels"),
    "read_file": ("path",),
    "list_files": ("folder", "pattern"),
    "resize_image": ("path", "width", "height", "format"),
}
SENTIMENT_TEXTS = """
The {} arrived late and the box was damaged.|I have used these {} for a year and love them.
|Support never answered my question about the {}.|The {} do exactly what the label says.
|For this price the {} are acceptable, nothing more.|My sister bought {} too and returned them.
|Please send the invoice for the {} to our new address.|How do I reset the {} after an update?
|The {} broke on the second day, and I want a refund.|Best {} on the market, five stars.
|The manual of the {} is only available in one language.|Your {} helped our team save hours a week.
"""
LABEL_SETS = """
positive, negative or neutral|complaint, question, praise or request|urgent or not urgent
|billing, delivery, quality or other|spam or not spam
"""
THEOREMS = """
the square root of {} is irrational|there are infinitely many primes of the form {}k + 3
|the sum of the first n multiples of {} is {}n(n + 1)/2|n^{} - n is even for every whole number n
|every set of {} integers contains two whose difference is divisible by one less than {}
|a tree with {} vertices has exactly one edge fewer than it has vertices
|the product of {} consecutive integers is divisible by {} factorial
|any integer above {} is a sum of two composite numbers
"""


def words(text: str) -> list[str]:
    """The entries of a `|`-separated list, line breaks folded to spaces."""
    return [" ".join(entry.split()) for entry in text.split("|") if entry.strip()]
