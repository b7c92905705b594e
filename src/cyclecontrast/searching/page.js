"use strict";

// The page asks the server and shows what it says. All text is set as text: names may hold anything.

const MOST_BYTES = 32 * 2 ** 20;
const at = (id) => document.getElementById(id);
const images = [];
let newest = 0;
let pending = null;
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

function clear() {
  at("results").hidden = true;
  at("results").removeAttribute("aria-busy");
  at("status").textContent = "";
  at("query").hidden = true;
  at("heading").replaceChildren();
  at("found").replaceChildren();
}

// What a place in the page's address asks of the server, null where it asks nothing.
function queryOf(place) {
  const [kind, number] = place.slice(1).split("=");
  if (!/^[0-9]{1,12}$/.test(number)) return null;
  if (kind === "frame") {
    const show = (told) => showQuery(`/frame/${number}`, `Most like ${told.query.moment} of `, isolated(told.query.video));
    return { address: `/search/${number}`, request: {}, show };
  }
  if (kind === "image" && images[number]) {
    const { file, source } = images[number];
    const show = () => showQuery(source, "Most like ", isolated(file.name || "the image"));
    return { address: "/search", request: { method: "POST", body: file }, show };
  }
  return null;
}

// The address of the page, and what an option asks again, change only with an answer to show.
async function ask(place, focus = true, note = "") {
  const { address, request, show } = queryOf(place);
  const number = ++newest;
  const results = at("results");
  pending = () => ask(place, focus, note);
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
  pending = null;
  results.removeAttribute("aria-busy");
  tell(told.problem ?? note);
  if (told.problem) {
    clear();
    at("problem").scrollIntoView({ block: "center" });
    return;
  }
  repeat = () => ask(place, false);
  if (location.hash !== place) history.pushState(null, "", place);
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
  picture.addEventListener("click", () => ask(`#frame=${frame.row}`));
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

function follow() {
  const place = location.hash;
  if (place && !/^#(frame|image)=/.test(place)) return; // a link to a part of the page
  if (queryOf(place)) {
    ask(place);
    return;
  }
  newest += 1;
  pending = repeat = null;
  tell("");
  clear();
}

function megabytes(bytes) {
  return `${Math.ceil(10 * bytes / 2 ** 20) / 10} MB`;
}

function take(files) {
  const [file] = files;
  if (!file) return;
  if (file.size > MOST_BYTES) {
    tell(`The image has ${megabytes(file.size)}, more than ${megabytes(MOST_BYTES)}.`);
    return;
  }
  images.push({ file, source: URL.createObjectURL(file) });
  ask(`#image=${images.length - 1}`, true, files.length > 1 ? `Of ${files.length} files the first is taken.` : "");
}

at("ask").addEventListener("submit", (event) => event.preventDefault());
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  take([...at("file").files]);
  at("file").value = "";
});
at("any").addEventListener("click", () => ask(`#frame=${Math.floor(Math.random() * Number(document.body.dataset.rows))}`));
for (const id of ["top", "per-video", "other-videos"]) at(id).addEventListener("change", () => (pending ?? repeat)?.());
document.addEventListener("paste", (event) => take([...(event.clipboardData?.files ?? [])]));
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
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length) take(files);
  else tell("That was no image file: save the image first, or copy and paste it.");
});
at("close").addEventListener("click", () => at("player").close());
at("player").addEventListener("close", endPlaying);
at("video").addEventListener("error", cannotPlay);
window.addEventListener("hashchange", follow);
follow();
