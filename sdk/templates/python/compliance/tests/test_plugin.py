"""The check without a sandbox: `PYTHONPATH=vendor:. python3 -m unittest discover -s tests`."""

import unittest

import plugin
from millgate.testing import inspect


class Words(unittest.TestCase):
    def test_words_are_masked_wherever_the_chunks_break(self):
        text, findings, refusal = inspect(plugin, {"words": ["foo"]}, ["😀 a fo", "o walks", " in"])
        self.assertEqual(text, "😀 a *** walks in")
        self.assertEqual((findings[0].start, findings[0].end), (7, 10))
        self.assertIsNone(refusal)
