// Masks the words on a list.
// @ts-check
import { Checked, plugin } from "../vendor/millgate/millgate.js";

export const { lifecycle, compliance } = plugin({
  // Called once; every request starts from what it leaves behind.
  configure: (/** @type {{words: string[]}} */ config) => config.words,

  compliance: {
    // Judged line by line, however the text comes in.
    window: { lines: 4096 },
    check(words, _segment, line) {
      const checked = new Checked();
      for (const word of words) {
        for (let at = line.indexOf(word); at >= 0; at = line.indexOf(word, at + word.length)) {
          checked.replace(at, at + word.length, "***", "word", "on the list");
        }
      }
      return checked;
    },
  },
});
