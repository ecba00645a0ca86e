"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const places = [...document.querySelectorAll(".plot")];
const buttons = [...document.querySelectorAll(".names button")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const CONTRAST = 3; // what lines need to be told from the ground, by WCAG

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function luminance(colour) {
  const [r, g, b] = colour.map((c) => {
    const share = c / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

// The colour, moved towards that of text until it is seen on the ground; black becomes text.
function seen(colour) {
  if (colour === "#000000") return variable("--text");
  const ground = channels(variable("--ground")), text = channels(variable("--text"));
  let found = channels(colour);
  for (let n = 0; n < 20 && contrast(found, ground) < CONTRAST; n++) {
    found = found.map((c, at) => c + 0.15 * (text[at] - c));
  }
  return `rgb(${found.map(Math.round).join(",")})`;
}

function coloured(trace) {
  const colour = seen(trace.meta);
  const look = trace.fill
    ? { fillcolor: colour, line: { ...trace.line, color: colour } }
    : { line: { ...trace.line, color: colour }, marker: { ...trace.marker, color: colour } };
  const button = buttons.find((each) => each.dataset.group === trace.legendgroup);
  const hidden = button && button.getAttribute("aria-pressed") === "false";
  return { ...trace, ...look, visible: !hidden };
}

function framed(layout) {
  const text = variable("--text"), line = variable("--line"), ground = variable("--raised");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const titled = (given) => ({ ...given, ...axis, title: { ...given.title, standoff: 8 } });
  return {
    ...layout,
    xaxis: titled(layout.xaxis),
    yaxis: titled(layout.yaxis),
    autosize: true,
    margin: { l: 10, r: 10, t: 30, b: 10 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: variable("--soft"), activecolor: text },
    // A finger that drags scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
}

function draw() {
  const options = {
    responsive: true,
    displaylogo: false,
    showTips: false,
    // Chosen, since Plotly's own set has one that sends the data elsewhere.
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]],
  };
  places.forEach((place, at) => {
    const { data, layout } = plots[at];
    Plotly.react(place, data.map(coloured), framed(layout), options);
  });
  buttons.forEach(sample);
}

// What a curve looks like, beside its name.
function sample(button) {
  const known = plots.flatMap((plot) => plot.data).filter((t) => t.legendgroup === button.dataset.group);
  const trace = known.find((t) => !t.fill && t.mode.includes("lines")) ?? known[0];
  const dash = trace.line.dash && trace.line.dash !== "solid" ? trace.line.dash.replaceAll("px", "") : "";
  button.querySelector("svg").innerHTML = trace.mode.includes("lines")
    ? `<line x1="1" x2="33" y1="6" y2="6" stroke-width="2.5" stroke="${seen(trace.meta)}" stroke-dasharray="${dash}"/>`
    : `<circle cx="17" cy="6" r="4" fill="none" stroke-width="2" stroke="${seen(trace.meta)}"/>`;
}

function toggle(button) {
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  places.forEach((place) => {
    Plotly.restyle(place, { visible: place.data.map((trace) => coloured(trace).visible) });
  });
}

async function unpack() {
  const packed = document.getElementById("library").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function start() {
  try {
    await unpack();
    document.documentElement.classList.add("drawn");
    draw();
  } catch (error) {
    document.documentElement.classList.remove("drawn");
    document.getElementById("trouble").hidden = false;
    document.getElementById("printed").open = true;
    throw error;
  }
  buttons.forEach((button) => button.addEventListener("click", () => toggle(button)));
  dark.addEventListener("change", draw);
}

start();
