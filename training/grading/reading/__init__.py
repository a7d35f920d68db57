"""Reading what an answer says.

plain_latex.py   one way of writing for what can be written in many
arithmetic.py    numbers, exactly; number_words.py: in words; short_numbers.py: 18k, XIV
units.py         numbers with what they count
dates.py         times of the day and dates
choices.py       the letters of options
shapes.py        lists, sets, tuples, matrices, equations; regions.py: intervals
"""
