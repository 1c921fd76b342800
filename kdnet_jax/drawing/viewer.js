"use strict";
// Shows the slices that viewer.py packed. The address tells what is shown: #case=3&slice=40.
(() => {
  const NAMES = ["reference", "prediction", "probability"];
  const WHEEL = 40; // pixels of scrolling for one slice: a notch of a wheel, a nudge on a touchpad
  const SWIPE = 8; // pixels of a finger's way for one slice

  const find = (id) => document.getElementById("viewer-" + id);
  const viewer = document.getElementById("viewer");
  const stage = find("stage"), canvas = find("canvas"), lines = find("lines");
  const cases = find("case"), slider = find("slice");
  const boxes = (kind) => [...viewer.querySelectorAll(`input[data-${kind}]`)];
  const source = (name) => viewer.querySelector(`input[data-source=${name}]`);
  const sheet = new Image();
  let data, shown, place; // the case's values, its number, the position in data.slices

  function draw() {
    if (!sheet.complete || !sheet.naturalWidth) return;
    const [width, height] = data.cell;
    const left = (place % data.columns) * width, top = Math.floor(place / data.columns) * height;
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").drawImage(sheet, left, top, width, height, 0, 0, width, height);
    viewer.dataset.drawn = data.slices[place];
  }

  function outlines() {
    const sources = boxes("source").filter((box) => box.checked && !box.disabled);
    const on = new Set(sources.map((box) => box.dataset.source));
    const regions = new Set(
      boxes("region").filter((box) => box.checked).map((box) => box.dataset.region));
    const paths = data.layers.filter((layer) => on.has(layer.source) && regions.has(layer.region));
    lines.replaceChildren(...paths.filter((layer) => layer.paths[place]).flatMap(strokes));
  }

  function strokes(layer) {
    // A dark rim keeps a line legible on bright tissue and in grey.
    return ["rim", "line"].map((part) => {
      const path = document.createElementNS(lines.namespaceURI, "path");
      path.setAttribute("d", layer.paths[place]);
      const level = String(layer.level).replace(".", "-");
      path.setAttribute("class", `${part} ${layer.source} level-${level}`);
      if (part === "line") path.style.stroke = layer.colour;
      path.style.setProperty("--width", layer.width);
      return path;
    });
  }

  function go(to) {
    place = Math.min(Math.max(to, 0), data.slices.length - 1);
    const number = data.slices[place], text = `${number} of ${data.depth}`;
    slider.value = place;
    slider.setAttribute("aria-valuetext", `slice ${text}`);
    find("says").textContent = text;
    canvas.setAttribute("aria-label", `Axial slice ${text}, ${cases.selectedOptions[0].text}`);
    viewer.dataset.case = shown;
    viewer.dataset.slice = number;
    draw();
    outlines();
  }

  function open(number) {
    shown = number;
    cases.value = String(number);
    data = JSON.parse(document.getElementById("slices-" + number).textContent);
    const [width, height] = data.size, [dx, dy] = data.pixel_mm;
    stage.style.setProperty("--aspect", (width * dx) / (height * dy));
    lines.setAttribute("viewBox", `0 0 ${width * data.units} ${height * data.units}`);
    const bar = 50 < (width * dx) / 2 ? 50 : 10; // mm
    find("bar").style.width = `${(100 * bar) / (width * dx)}%`;
    find("bar").textContent = `${bar / 10} cm`;
    slider.min = 0;
    slider.max = data.slices.length - 1;
    const known = data.layers.some((layer) => layer.source === "probability");
    source("probability").disabled = !known;
    find("unknown").hidden = known;
    const step = data.slices.length > 1 ? data.slices[1] - data.slices[0] : 1;
    find("step").textContent =
      step > 1 ? `To keep this page small, every ${step} slices one is shown.` : "";
    delete viewer.dataset.drawn;
    sheet.src = data.sheet;
  }

  function nearest(number) {
    const ways = data.slices.map((each) => Math.abs(each - number));
    return ways.indexOf(Math.min(...ways));
  }

  function remember() {
    history.replaceState(null, "", `#case=${shown}&slice=${data.slices[place]}`);
  }

  function follow(jump) {
    const asked = new URLSearchParams(location.hash.slice(1));
    const known = [...cases.options].some((each) => each.value === asked.get("case"));
    if (!known && data) return; // the address of another part of the page
    const number = known ? Number(asked.get("case")) : Number(cases.options[0].value);
    if (number !== shown) open(number);
    go(nearest(Number(asked.get("slice")) || data.start));
    if (known && jump) viewer.scrollIntoView({ behavior: "instant" });
  }

  function step(by) {
    go(place + by);
    remember();
  }

  function toggle(name) {
    const box = source(name);
    if (!box.disabled) box.checked = !box.checked;
    outlines();
  }

  function plain() {
    for (const box of boxes("source")) box.checked = false;
    outlines();
  }

  sheet.addEventListener("load", draw);
  cases.addEventListener("change", () => {
    open(Number(cases.value));
    go(nearest(data.start));
    remember();
  });
  slider.addEventListener("input", () => go(Number(slider.value)));
  slider.addEventListener("change", remember);
  find("down").addEventListener("click", () => step(-1));
  find("up").addEventListener("click", () => step(1));
  find("plain").addEventListener("click", plain);
  for (const box of [...boxes("source"), ...boxes("region")]) {
    box.addEventListener("change", outlines);
  }
  window.addEventListener("hashchange", () => follow(true));

  const KEYS = {
    ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10,
    Home: -Infinity, End: Infinity,
  };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in KEYS) step(KEYS[event.key]);
    else if (event.key === "0") plain();
    else if (NAMES[Number(event.key) - 1]) toggle(NAMES[Number(event.key) - 1]);
    else return;
    event.preventDefault();
  });

  let rolled = 0;
  stage.addEventListener("wheel", (event) => {
    const up = event.deltaY < 0;
    // At either end the wheel scrolls the page again: nobody gets stuck on the picture.
    if (event.ctrlKey || (up ? place === data.slices.length - 1 : place === 0)) return;
    event.preventDefault();
    rolled += event.deltaMode ? Math.sign(event.deltaY) * WHEEL : event.deltaY;
    const by = Math.trunc(rolled / WHEEL);
    rolled -= by * WHEEL;
    if (by) step(-by);
  }, { passive: false });

  let held = null; // where a finger or the mouse took hold, and of which slice
  stage.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, place };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (held) go(held.place + Math.round((event.clientX - held.x) / SWIPE));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, () => {
      if (held) remember();
      held = null;
    });
  }

  for (const each of document.querySelectorAll(".scripted")) each.hidden = false;
  follow(true);
})();
