"""Shows results: pages, text, JUnit, Markdown. toolkit/slo judges them."""
