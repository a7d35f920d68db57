"""Prompts on which the base's entropies are measured where the user gives none.

They are what instruct models are asked in general: arithmetic, word problems, reasoning, code,
facts, writing and translation. A gate rate measured on them holds for such questions. For one's own
traffic, `reasonmaxxer store calibrate NAME --prompts FILE` measures on one's own prompts.
"""

from __future__ import annotations

PROMPTS = (
    "What is 17 * 3 + 5?",
    "What is 9 - 11 * 7 + 12?",
    "Compute 144 / 12 - 3 * 2 + 40.",
    "What is 3 + 4 * 2 - 6?",
    "Solve for x: 3x + 7 = 2x + 19.",
    "What is the remainder when 2^10 is divided by 7?",
    "Factor x^2 - 5x + 6.",
    "Find the sum of all whole numbers from 1 to 40.",
    "A shirt costs 20 dollars after a discount of 20 percent. What did it cost before?",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
    "Anna has 12 apples, gives a third of them to Ben, and buys 5 more. How many has she now?",
    "Two numbers add up to 30, and their difference is 4. Which numbers are they?",
    "A rectangle is twice as long as it is wide. Its perimeter is 36. What is its area?",
    "How many ways are there to arrange the letters of the word LEVEL?",
    "Three dice are thrown. How likely is it that all of them show the same number?",
    "If five machines make five parts in five minutes, how long do 100 machines take for 100?",
    "All roses are flowers. Some flowers fade quickly. Do some roses fade quickly? Explain.",
    "I am older than Tom, and Tom is older than Mia. Is Mia older than me? Say why.",
    "Which of these is not like the others: 4, 9, 16, 20, 25? Explain.",
    "Is 91 a prime number? Show how you know.",
    "Prove that the sum of two odd numbers is even.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Python function that checks whether a text is a palindrome.",
    "Explain what this code prints: print([i * i for i in range(5) if i % 2])",
    "Write an SQL query that counts the orders of each customer.",
    "What is the difference between a list and a tuple in Python?",
    "Why is the sky blue?",
    "How does a refrigerator keep its inside cold?",
    "Explain to a child of eight what a prime number is.",
    "What causes the seasons on Earth?",
    "Who wrote Faust, and what is it about?",
    "Name three countries in South America and their capitals.",
    "Summarise the story of Romeo and Juliet in three sentences.",
    "Write a short poem about the sea.",
    "Write an e-mail that moves a meeting from Monday to Tuesday.",
    "List three uses of a paper clip.",
    "Give me a recipe for pancakes.",
    "Translate to German: The weather is nice today, so we are going for a walk.",
    "Translate to French: Where is the nearest railway station?",
    "Correct the grammar: She don't likes apples and neither I do.",
)
