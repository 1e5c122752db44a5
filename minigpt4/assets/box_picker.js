// A box that is drawn on the picture, in hundredths of its width and height: the event `input` brings its text.
let start = null;
const stageOf = (event) => event.target.closest(".stage");
const at = (event, stage) => {
  const edges = stage.getBoundingClientRect();
  const part = (value, from, side) => Math.round(100 * Math.min(1, Math.max(0, (value - from) / side)));
  return [part(event.clientX, edges.left, edges.width), part(event.clientY, edges.top, edges.height)];
};
const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
const draw = (stage, [left, top, right, bottom]) => {
  const style = { display: "block", left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` };
  Object.assign(stage.querySelector("i").style, style);
};
element.addEventListener("pointerdown", (event) => {
  const stage = stageOf(event);
  if (!stage) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  start = at(event, stage);
});
element.addEventListener("pointermove", (event) => {
  if (start) draw(stageOf(event), boxOf(start, at(event, stageOf(event))));
});
element.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = boxOf(start, at(event, stageOf(event)));
  start = null;
  if (box[2] > box[0] && box[3] > box[1]) trigger("input", { box: `{${box.map((value) => `<${value}>`).join("")}}` });
});
element.addEventListener("pointercancel", () => { start = null; });
