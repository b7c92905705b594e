"use strict";

// The page asks the server and shows what it says. All text is set as text: names may hold anything.

const MOST_BYTES = 32 * 2 ** 20;
const at = (id) => document.getElementById(id);
const images = [];
let newest = 0;
let repeat = null;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function isolated(text) {
  return make("bdi", {}, text);
}

function options() {
  const asked = new URLSearchParams({ top: at("top").value });
  if (at("per-video").value) asked.set("per_video", at("per-video").value);
  if (at("other-videos").checked) asked.set("other_videos", "true");
  return asked;
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

async function ask(address, request, show, focus) {
  const number = ++newest;
  const results = at("results");
  repeat = () => ask(address, request, show, false);
  results.hidden = false;
  results.setAttribute("aria-busy", "true");
  at("status").textContent = "Searching …";
  let told;
  try {
    const response = await fetch(`${address}?${options()}`, request);
    told = response.ok ? await response.json() : { problem: `The server refuses that (${response.statusText}).` };
  } catch {
    told = { problem: "The server does not answer: it was ended, or the image is too large." };
  }
  if (number !== newest) return;
  results.removeAttribute("aria-busy");
  tell(told.problem ?? "");
  if (told.problem) {
    at("status").textContent = "";
    results.hidden = !at("found").childElementCount;
    return;
  }
  show(told);
  const count = told.frames.length;
  at("status").textContent = count
    ? `${count} frame${count === 1 ? "" : "s"}, the most similar first, in ${Math.ceil(1000 * told.seconds)} ms`
    : "There are no other frames.";
  at("found").replaceChildren(...told.frames.map(card));
  if (focus) {
    at("heading").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }
}

function showQuery(source, ...heading) {
  at("query").src = source;
  at("query").hidden = false;
  at("heading").replaceChildren(...heading);
}

function card(frame) {
  const image = make("img", { src: `/frame/${frame.row}`, alt: "", loading: "lazy", decoding: "async" });
  const picture = make("button", { type: "button", class: "picture", "data-row": frame.row }, image);
  picture.setAttribute("aria-label", `Find frames like ${frame.moment} of ${frame.video}, similarity ${frame.similarity.toFixed(3)}`);
  picture.addEventListener("click", () => go(`#frame=${frame.row}`));
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "gone" }, "This frame cannot be read.")));
  const name = make("p", { class: "name", title: frame.video }, isolated(frame.video));
  const similarity = make("span", { class: "similarity" }, frame.similarity.toFixed(3));
  const item = make("li", { class: "card" }, picture, make("p", { class: "facts" }, when(frame), similarity), name);
  if (frame.problem) item.append(make("p", { class: "why" }, isolated(frame.problem)));
  return item;
}

function when(frame) {
  const moment = make("span", { class: "moment" });
  if (frame.playable === null) {
    moment.textContent = frame.moment;
    return moment;
  }
  const address = `/video/${frame.playable}#t=${Math.max(0, frame.time ?? 0).toFixed(2)}`;
  const link = make("a", { href: address }, `▶ ${frame.moment}`);
  link.setAttribute("aria-label", `Play ${frame.video} from ${frame.moment}`);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    play(address, frame);
  });
  moment.append(link);
  return moment;
}

function play(address, frame) {
  at("player-name").replaceChildren(`${frame.moment} of `, isolated(frame.video));
  at("player-problem").hidden = true;
  at("video").hidden = false;
  at("video").src = address;
  at("player").showModal();
  at("video").play().catch(() => {});
}

function endPlaying() {
  at("video").removeAttribute("src");
  at("video").load();
}

function cannotPlay() {
  if (!at("video").hasAttribute("src")) return;
  at("video").hidden = true;
  at("player-problem").textContent = "This browser cannot decode the video; a video player of your own may.";
  at("player-problem").hidden = false;
}

function go(place) {
  if (location.hash === place) follow();
  else location.hash = place;
}

function follow() {
  const [kind, number] = location.hash.slice(1).split("=");
  if (kind === "frame" && /^[0-9]{1,12}$/.test(number)) {
    ask(`/search/${number}`, {}, (told) => {
      showQuery(`/frame/${number}`, `Most like ${told.query.moment} of `, isolated(told.query.video));
    }, true);
  } else if (kind === "image" && images[number]) {
    const { file, source } = images[number];
    ask("/search", { method: "POST", body: file }, () => showQuery(source, "Most like ", isolated(file.name || "the image")), true);
  } else {
    newest += 1;
    repeat = null;
    tell("");
    at("results").hidden = true;
    at("found").replaceChildren();
  }
}

function take(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) {
    tell(`The image has ${(file.size / 2 ** 20).toFixed(0)} MB, more than ${MOST_BYTES / 2 ** 20}.`);
    return;
  }
  images.push({ file, source: URL.createObjectURL(file) });
  go(`#image=${images.length - 1}`);
}

function imageOf(transfer) {
  return [...(transfer?.files ?? [])][0];
}

at("ask").addEventListener("submit", (event) => event.preventDefault());
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  take(at("file").files[0]);
  at("file").value = "";
});
at("any").addEventListener("click", () => go(`#frame=${Math.floor(Math.random() * Number(document.body.dataset.rows))}`));
for (const id of ["top", "per-video", "other-videos"]) at(id).addEventListener("change", () => repeat?.());
document.addEventListener("paste", (event) => take(imageOf(event.clipboardData)));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) at("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const file = imageOf(event.dataTransfer);
  if (file) take(file);
  else tell("That was no image file: save the image first, or copy and paste it.");
});
at("close").addEventListener("click", () => at("player").close());
at("player").addEventListener("close", endPlaying);
at("video").addEventListener("error", cannotPlay);
window.addEventListener("hashchange", follow);
follow();
