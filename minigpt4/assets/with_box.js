// Puts a drawn box into the message: in place of one that is there, else behind the words. Without words, but maybe a task's
// token, it is what is to be identified; without a picture, it was drawn on the example.
(message, example) => {
  const box = document.querySelector("#box .stage").dataset.box;
  const written = /\{(<\d{1,3}>){4}\}/, words = message.text.replace(/^\s*\[[a-z]+\]\s*$/, "").trim();
  const text = written.test(words) ? words.replace(written, box) : `${words || "[identify]"} ${box}`;
  const shown = message.files.length || document.querySelector("#chat .user img");
  return [{ text, files: shown ? message.files : example }];
}
