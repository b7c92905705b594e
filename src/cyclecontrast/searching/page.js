"use strict";

// Sends searches to the server and shows the answers. Names are set as text, never as HTML: they may contain anything.

const MAX_BYTES = 32 * 2 ** 20;
const MAX_TOP = 200;
const KEPT_IMAGES = 8;
const byId = (id) => document.getElementById(id);
const images = new Map();
let lastSearch = 0;
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

// Frames of one video are folded into its best one, so that the page shows as many videos as there are frames to show.
function folds() {
  return byId("per-video").value === "fold";
}

function options() {
  const top = Number(byId("top").value);
  const chosen = new URLSearchParams({ top: folds() ? MAX_TOP : top });
  if (folds()) chosen.set("per_video", Math.floor(MAX_TOP / top));
  else if (byId("per-video").value) chosen.set("per_video", byId("per-video").value);
  if (byId("other-videos").checked) chosen.set("other_videos", "true");
  return chosen;
}

function showProblem(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

function clear() {
  byId("results").hidden = true;
  byId("save").hidden = true;
  byId("results").removeAttribute("aria-busy");
  byId("status").textContent = "";
  byId("query").hidden = true;
  byId("heading").replaceChildren();
  byId("found").replaceChildren();
}

// Returns the request for a place in the page's address, null where it is not a search.
function queryOf(place) {
  const [kind, number] = place.slice(1).split("=");
  if (!/^[0-9]{1,12}$/.test(number)) return null;
  if (kind === "frame") {
    const show = (answer) =>
      showQuery(`/frame/${number}`, `Most similar to ${answer.query.moment} of `, isolated(answer.query.video));
    return { address: `/search/${number}`, request: {}, show };
  }
  if (kind === "image" && images.has(number)) {
    const { file, name, source } = images.get(number);
    const show = () => showQuery(source, "Most similar to ", isolated(name || "the image"));
    return { address: "/search", request: { method: "POST", body: file }, show };
  }
  return null;
}

// The page's address, and the search that an option repeats, change only once there is an answer to show.
async function search(place, focus = true, note = "") {
  const { address, request, show } = queryOf(place);
  const number = ++lastSearch;
  const results = byId("results");
  pending = () => search(place, focus, note);
  results.hidden = false;
  hideSamples();
  results.setAttribute("aria-busy", "true");
  byId("status").textContent = "Searching …";
  let answer;
  try {
    const response = await fetch(`${address}?${options()}`, request);
    const refusal = response.status === 503 ? "is busy; try again in a moment" : `refused the request (${response.status})`;
    answer = response.ok ? await response.json() : { problem: `The server ${refusal}.` };
  } catch {
    answer = { problem: "The server does not respond: it was stopped, or the image is too large." };
  }
  if (number !== lastSearch) return;
  pending = null;
  results.removeAttribute("aria-busy");
  showProblem(answer.problem ?? note);
  if (answer.problem) {
    clear();
    if (!repeat) showSamples();
    byId("problem").scrollIntoView({ block: "center" });
    return;
  }
  repeat = () => search(place, false);
  if (location.hash !== place) history.pushState(null, "", place);
  show(answer);
  const groups = folds() ? grouped(answer.frames).slice(0, Number(byId("top").value)) : answer.frames.map((frame) => [frame]);
  const count = groups.length;
  const what = folds() ? "video" : "frame";
  byId("status").textContent = count
    ? `${count} ${what}${count === 1 ? "" : "s"}, the most similar first, in ${Math.ceil(1000 * answer.seconds)} ms`
    : "No other frames.";
  byId("found").replaceChildren(...groups.map(folded));
  offerTable(groups.flat());
  if (focus) {
    byId("heading").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }
}

function showQuery(source, ...heading) {
  byId("query").src = source;
  byId("query").hidden = false;
  byId("heading").replaceChildren(...heading);
}

function grouped(frames) {
  const groups = new Map();
  for (const frame of frames) groups.set(frame.video, [...(groups.get(frame.video) ?? []), frame]);
  return [...groups.values()];
}

// Returns the card of the best frame of a video, with a button that shows the others behind it.
function folded([best, ...others]) {
  const item = card(best);
  if (!others.length) return item;
  const title = `${others.length} more from this clip`;
  const button = make("button", { type: "button", class: "more", "aria-expanded": "false" }, title);
  let shown = [];
  button.addEventListener("click", () => {
    const isOpen = shown.length > 0;
    for (const other of shown) other.remove();
    shown = isOpen ? [] : others.map(card);
    for (const other of shown) other.classList.add("folded");
    item.after(...shown);
    button.setAttribute("aria-expanded", String(!isOpen));
    button.textContent = isOpen ? title : "Fold";
  });
  item.append(button);
  return item;
}

function offerTable(frames) {
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const rows = frames.map((frame, i) => [i + 1, frame.similarity.toFixed(4), frame.video, frame.frame, frame.time]);
  const lines = [["rank", "similarity", "video", "frame", "time"], ...rows].map((row) => row.map(quoted).join(","));
  const link = byId("save");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  link.hidden = !frames.length;
}

// Invites to a first search by frames of several videos.
function showSamples() {
  const rows = document.body.dataset.samples.split(" ");
  byId("samples").replaceChildren(...rows.map((row) => make("li", { class: "card" }, picture(row, "Find frames like this one"))));
  byId("start").hidden = false;
}

function hideSamples() {
  byId("samples").replaceChildren();
  byId("start").hidden = true;
}

function picture(row, label) {
  const image = make("img", { src: `/frame/${row}`, alt: "", loading: "lazy", decoding: "async" });
  const button = make("button", { type: "button", class: "picture", "data-row": row, "aria-label": label }, image);
  button.addEventListener("click", () => search(`#frame=${row}`));
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "gone" }, "This frame cannot be read.")));
  return button;
}

function card(frame) {
  const label = `Find frames like ${frame.moment} of ${frame.video}, similarity ${frame.similarity.toFixed(3)}`;
  const name = make("p", { class: "name", title: frame.video }, isolated(frame.video));
  const similarity = make("span", { class: "similarity" }, frame.similarity.toFixed(3));
  const item = make("li", { class: "card" }, picture(frame.row, label), make("p", { class: "facts" }, when(frame), similarity), name);
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
  byId("player-name").replaceChildren(`${frame.moment} of `, isolated(frame.video));
  byId("player-problem").hidden = true;
  byId("video").hidden = false;
  byId("video").src = address;
  byId("player").showModal();
  byId("video").play().catch(() => {});
}

function stopVideo() {
  byId("video").removeAttribute("src");
  byId("video").load();
}

function showVideoProblem() {
  if (!byId("video").hasAttribute("src")) return;
  byId("video").hidden = true;
  byId("player-problem").textContent = "This browser cannot decode the video; try another video player.";
  byId("player-problem").hidden = false;
}

async function openAddress() {
  const place = location.hash;
  if (place.startsWith("#image=")) await restoreImage(place.slice("#image=".length));
  if (place && !/^#(frame|image)=/.test(place)) return; // a link to a part of the page
  if (queryOf(place)) {
    search(place);
    return;
  }
  lastSearch += 1;
  pending = repeat = null;
  showProblem("");
  clear();
  showSamples();
}

// The browser keeps the last images, so that they are still there when the page is loaded again.
async function keepImage(number, { file, name }) {
  try {
    const kept = await caches.open("queries");
    await kept.put(`/query/${number}`, new Response(file, { headers: { name: encodeURIComponent(name) } }));
    for (const old of (await kept.keys()).slice(0, -KEPT_IMAGES)) await kept.delete(old);
  } catch {} // the image is lost when the page is loaded again
}

async function restoreImage(number) {
  if (images.has(number)) return;
  try {
    const found = await (await caches.open("queries")).match(`/query/${number}`);
    if (found) addImage(number, await found.blob(), decodeURIComponent(found.headers.get("name")));
  } catch {}
}

function addImage(number, file, name) {
  images.set(number, { file, name, source: URL.createObjectURL(file) });
}

function megabytes(bytes) {
  return `${Math.ceil(10 * bytes / 2 ** 20) / 10} MB`;
}

function searchFile(files) {
  const [file] = files;
  if (!file) return;
  if (file.size > MAX_BYTES) {
    showProblem(`The image has ${megabytes(file.size)}; the limit is ${megabytes(MAX_BYTES)}.`);
    return;
  }
  const number = String(Date.now() % 1e12);
  addImage(number, file, file.name);
  keepImage(number, images.get(number));
  search(`#image=${number}`, true, files.length > 1 ? `Only the first of ${files.length} files is used.` : "");
}

byId("search").addEventListener("submit", (event) => event.preventDefault());
byId("choose").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", () => {
  searchFile([...byId("file").files]);
  byId("file").value = "";
});
byId("random").addEventListener("click", () => search(`#frame=${Math.floor(Math.random() * Number(document.body.dataset.rows))}`));
for (const id of ["top", "per-video", "other-videos"]) byId(id).addEventListener("change", () => (pending ?? repeat)?.());
document.addEventListener("paste", (event) => searchFile([...(event.clipboardData?.files ?? [])]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length) searchFile(files);
  else showProblem("This is not an image file: save the image first, or copy and paste it.");
});
byId("close").addEventListener("click", () => byId("player").close());
byId("player").addEventListener("close", stopVideo);
byId("video").addEventListener("error", showVideoProblem);
window.addEventListener("hashchange", openAddress);
openAddress();
