"""One page that needs no network: what replacing a kernel gains and costs, from commit to commit.

`python -m benchmarks.substitution_page page.html` writes it from the recorded results.
"""
