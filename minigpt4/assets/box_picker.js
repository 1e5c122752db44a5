// A box on the picture that was shown last, in hundredths of its width and height. The event `input` tells of it; its text
// is the stage's data-box.
const stage = element.querySelector(".stage"), image = stage.querySelector("img"), example = image.getAttribute("src") && image.src;
let start = null, box = null;
const within = (value, least, most) => Math.min(most, Math.max(least, value));
const at = (event) => {
  const edges = stage.getBoundingClientRect();
  const part = (value, from, side) => Math.round(100 * within((value - from) / side, 0, 1));
  return [part(event.clientX, edges.left, edges.width), part(event.clientY, edges.top, edges.height)];
};
const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const draw = (next) => {
  box = next;
  const [left, top, right, bottom] = box ?? [0, 0, 0, 0];
  const style = { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` };
  Object.assign(stage.querySelector("i").style, style, { display: box ? "block" : "none" });
};
const tell = () => {
  stage.dataset.box = `{${box.map((value) => `<${value}>`).join("")}}`;
  trigger("input", {});
};

stage.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  start = at(event);
});
stage.addEventListener("pointermove", (event) => { if (start) draw(boxOf(start, at(event))); });
stage.addEventListener("pointerup", (event) => {
  if (!start) return;
  const [left, top, right, bottom] = boxOf(start, at(event));
  start = null;
  if (right === left || bottom === top) return draw(null);
  draw([left, top, right, bottom]);
  tell();
});
stage.addEventListener("pointercancel", () => { start = null; draw(null); });
stage.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] };
  if (event.key === "Enter" && box) return tell();
  if (!(event.key in moves)) return;
  event.preventDefault();
  if (!box) return draw([25, 25, 75, 75]);
  const [left, top, right, bottom] = box, [x, y] = moves[event.key];
  if (event.shiftKey) return draw([left, top, within(right + x, left + 5, 100), within(bottom + y, top + 5, 100)]);
  const dx = within(x, -left, 100 - right), dy = within(y, -top, 100 - bottom);
  draw([left + dx, top + dy, right + dx, bottom + dy]);
});

const showLast = () => {
  const last = (images) => [...document.querySelectorAll(images)].at(-1)?.src;
  const source = last("#message .thumbnails img") ?? last("#chat .user img") ?? example;
  stage.hidden = !source;
  if (source && source !== image.src) {
    image.src = source;
    // the chat shows several pictures as one, whose name says where the last is: boxes are of that
    const [, x, y, width, height] = source.match(/last-(\d+)-(\d+)-(\d+)-(\d+)\.webp$/) ?? [];
    image.style = width ? `width: ${width}px; height: ${height}px; object-fit: none; object-position: -${x}px -${y}px` : "";
    draw(null);
  }
};
let waiting = 0;
new MutationObserver(() => { waiting ||= requestAnimationFrame(() => { waiting = 0; showLast(); }); })
  .observe(document.body, { childList: true, subtree: true, attributeFilter: ["src"] });
showLast();
