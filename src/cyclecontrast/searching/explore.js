"use strict";

// Draws the map and shows the chosen frame. Names are set as text, never as HTML: they may contain anything.

const { frames, groups, folders } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const map = byId("map");
const aside = document.querySelector("aside");
const MARGIN = 14;
const MOST_COLORS = 40;
const highest = Math.min(...frames.map((frame) => frame.y));
const lowest = Math.max(...frames.map((frame) => frame.y));
let chosen = null;
let highlighted = null;

// Neighboring numbers get hues that differ by the golden angle, so that any number of colors stays apart.
function colorOf(number) {
  if (number > MOST_COLORS) return style("--muted");
  return `hsl(${(number * 137.508 + 190) % 360} ${number % 2 ? 72 : 58}% ${style("--lightness")})`;
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function kindOf(frame) {
  return byId("color").value === "group" ? frame.group : frame.folder + 1;
}

// Places are in percent of a square; the map is as high as its dots.
function placeOf(frame, side) {
  const scale = (side - 2 * MARGIN) / 100;
  return [MARGIN + frame.x * scale, MARGIN + (frame.y - highest) * scale];
}

function draw() {
  const side = map.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  const height = 2 * MARGIN + Math.max(40, lowest - highest) * ((side - 2 * MARGIN) / 100);
  map.style.height = `${height}px`;
  map.width = Math.round(side * ratio);
  map.height = Math.round(height * ratio);
  const pen = map.getContext("2d");
  pen.scale(ratio, ratio);
  const radius = Math.max(2.5, Math.min(5, side / 150));
  const isLit = (frame) => highlighted === null || kindOf(frame) === highlighted;
  const inOrder = [...frames].sort((one, other) => isLit(one) - isLit(other));
  for (const frame of inOrder) {
    const [x, y] = placeOf(frame, side);
    pen.beginPath();
    pen.arc(x, y, isLit(frame) && highlighted !== null ? radius + 1 : radius, 0, 2 * Math.PI);
    pen.globalAlpha = isLit(frame) ? 0.85 : 0.12;
    pen.fillStyle = isLit(frame) ? colorOf(kindOf(frame)) : style("--muted");
    pen.fill();
  }
  pen.globalAlpha = 1;
  if (byId("color").value === "group") drawNumbers(pen, side);
  if (chosen !== null) drawChosen(pen, side, radius);
}

function drawNumbers(pen, side) {
  pen.font = `650 ${Math.max(11, Math.min(14, side / 36))}px system-ui, "Liberation Sans", sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineWidth = 4;
  pen.lineJoin = "round";
  pen.strokeStyle = style("--card");
  pen.fillStyle = style("--text");
  for (let group = 1; group <= groups; group += 1) {
    if (highlighted !== null && highlighted !== group) continue;
    const members = frames.filter((frame) => frame.group === group).map((frame) => placeOf(frame, side));
    if (!members.length) continue;
    const middle = [0, 1].map((axis) => members.map((member) => member[axis]).sort((a, b) => a - b)[members.length >> 1]);
    pen.strokeText(group, ...middle);
    pen.fillText(group, ...middle);
  }
}

function drawChosen(pen, side, radius) {
  const [x, y] = placeOf(frames[chosen], side);
  pen.strokeStyle = style("--text");
  pen.lineWidth = 1;
  for (const near of frames[chosen].near) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(...placeOf(frames[near], side));
    pen.stroke();
  }
  pen.lineWidth = 2.5;
  pen.fillStyle = colorOf(kindOf(frames[chosen]));
  pen.beginPath();
  pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
  pen.fill();
  pen.stroke();
}

function paint(element, frame) {
  element.className = `picture sheet-${frame.sheet}`;
  element.style.backgroundPosition = frame.at;
}

function tile(number, note) {
  const button = document.createElement("button");
  const picture = document.createElement("span");
  const text = document.createElement("small");
  button.type = "button";
  button.className = "tile";
  button.dataset.frame = number;
  button.title = `${frames[number].video}, ${frames[number].moment}`;
  text.textContent = note;
  paint(picture, frames[number]);
  button.append(picture, text);
  return button;
}

function choose(number) {
  chosen = number;
  const frame = frames[number];
  paint(byId("picture"), frame);
  byId("name").replaceChildren(isolated(frame.video));
  byId("moment").textContent = frame.moment.startsWith("frame") ? frame.moment : `${frame.moment}, frame ${frame.frame}`;
  const link = document.createElement("a");
  link.href = `#group-${frame.group}`;
  link.textContent = `Group ${frame.group}`;
  byId("kind").replaceChildren(link);
  byId("near").replaceChildren(...frame.near.map((near, place) => tile(near, frame.similar[place].toFixed(2))));
  byId("hint").hidden = true;
  byId("chosen").hidden = false;
  aside.classList.remove("empty");
  for (const one of document.querySelectorAll("main .tile")) one.classList.toggle("chosen", Number(one.dataset.frame) === number);
  draw();
}

function isolated(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}

function close() {
  chosen = null;
  aside.classList.add("empty");
  byId("hint").hidden = false;
  byId("chosen").hidden = true;
  for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
  draw();
}

function nearestTo(event) {
  const box = map.getBoundingClientRect();
  const distance = (frame) => {
    const [x, y] = placeOf(frame, box.width);
    return (x - (event.clientX - box.left)) ** 2 + (y - (event.clientY - box.top)) ** 2;
  };
  let best = 0;
  frames.forEach((frame, number) => {
    if (distance(frame) < distance(frames[best])) best = number;
  });
  return best;
}

function drawLegend() {
  const isGroup = byId("color").value === "group";
  const names = isGroup ? Array.from({ length: groups }, (_, number) => `Group ${number + 1}`) : folders;
  byId("legend").replaceChildren(
    ...names.slice(0, MOST_COLORS).map((name, number) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = colorOf(number + 1);
      button.type = "button";
      button.setAttribute("aria-pressed", String(highlighted === number + 1));
      button.append(swatch, isolated(name));
      button.addEventListener("click", () => {
        highlighted = highlighted === number + 1 ? null : number + 1;
        for (const one of byId("legend").querySelectorAll("button")) one.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(highlighted !== null));
        draw();
      });
      item.append(button);
      return item;
    }),
  );
  for (const swatch of document.querySelectorAll("[data-group]")) swatch.style.background = colorOf(Number(swatch.dataset.group));
}

function redraw() {
  drawLegend();
  draw();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.(".tile");
  if (button) choose(Number(button.dataset.frame));
});
map.addEventListener("click", (event) => choose(nearestTo(event)));
map.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  choose(((chosen ?? -step) + step + frames.length) % frames.length);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen !== null) close();
});
byId("close").addEventListener("click", close);
byId("color").addEventListener("change", () => {
  highlighted = null;
  redraw();
});
window.addEventListener("resize", draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
redraw();
