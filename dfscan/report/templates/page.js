"use strict";
// The table and the details of the report. Text reaches the page only as textContent, never as markup.
(() => {
  const CHUNK = 200; // rows shown at first and with each "show more"
  const MOST_PRINTED = 2000; // rows
  const SVG = "http://www.w3.org/2000/svg";

  const load = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = load("data");
  const leftOut = load("left-out");
  const spaced = (code) => code.replaceAll("_", " ");
  const FIELDS = ["path", "verdict", "score", "threshold", "status", "code", "reason", "start", "end", "duration", "reviewer", "copy_of"];
  const videos = data.rows.map((values, row) => {
    const video = { row };
    FIELDS.forEach((field, i) => (video[field] = values[i]));
    video.rank = data.verdicts.indexOf(video.verdict);
    return video;
  });
  for (const video of videos) {
    video.original = video.copy_of === null ? null : videos[video.copy_of]; // the first row with the same video
    const paths = video.original ? `${video.path}\n${video.original.path}` : video.path;
    video.haystack = `${paths}\n${spaced(video.code)}\n${video.code}: ${video.reason}`.toLowerCase();
  }

  // ---- Words and numbers -------------------------------------------------------------------------------------

  const count = (number) => number.toLocaleString("en");
  const counted = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;
  const score = (value) => (value === null ? "–" : value.toFixed(4));
  const nameOf = (track) => `track ${track}`;
  const last = (list) => list[list.length - 1];
  const range = (list, show) => {
    const known = list.filter((value) => value !== null);
    const [from, to] = [show(Math.min(...known)), show(Math.max(...known))];
    return !known.length ? "unknown" : from === to ? from : `${from} to ${to}`;
  };

  /** Seconds as m:ss.s, or h:mm:ss.s. */
  function time(seconds, digits = 1) {
    if (seconds === null) return "–";
    const all = Number(seconds.toFixed(digits));
    const rest = (all % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
    const minutes = Math.floor(all / 60);
    if (minutes < 60) return `${minutes}:${rest}`;
    return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  }

  function bytes(number) {
    const power = number < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(number) / 3));
    if (power === 0) return counted(number, "byte", "bytes");
    return `${(number / 1000 ** power).toFixed(1)} ${["", "kB", "MB", "GB", "TB"][power]} (${count(number)} bytes)`;
  }

  // ---- Making elements ---------------------------------------------------------------------------------------

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const foreign = (tag, text) => make(tag, {}, make("bdi", {}, text)); // isolates right-to-left text
  const dim = (text) => make("span", { class: "dim" }, text);
  const icon = (name, width, height, ...shapes) =>
    draw("svg", { class: name, width, height, "aria-hidden": "true" }, ...shapes);
  const mark = (verdict) => icon(`mark ${verdict}`, 14, 14, draw("use", { href: `#mark-${verdict}` }));

  // ---- The table ---------------------------------------------------------------------------------------------

  const number = (title, value, show) => ({
    title,
    value,
    first: "descending",
    kind: "number",
    cell: (video) => show(value(video)),
  });
  const text = (title, value, cell) => ({
    title,
    value: (video) => value(video) || null,
    first: "ascending",
    kind: "text",
    cell,
  });
  const COLUMNS = {
    name: { title: "Video", value: (video) => video.row, first: "ascending", kind: "text", cell: nameCell },
    verdict: { title: "Verdict", value: (video) => video.rank, first: "ascending", kind: "text", cell: verdictCell },
    score: { ...number("Score", (video) => video.score), cell: scoreCell },
    reason: text("Why", (video) => video.code, reasonCell),
    evidence: { title: "Look at", value: (video) => video.start, first: "ascending", kind: "number", cell: evidenceCell },
    duration: number("Duration", (video) => video.duration, time),
  };
  const SUSPICIOUS = "suspicious"; // the initial order
  const UNREVIEWED = "unreviewed";

  const form = document.querySelector(".controls");
  const table = document.querySelector("#videos table");
  const status = document.querySelector(".shown");
  const more = document.querySelector(".more button");
  const printNote = document.querySelector(".print-note");
  let body = table.appendChild(make("tbody", { role: "rowgroup" }));
  let matching = videos;
  let numShown = 0;
  let direction = null; // sort direction; null for the default of the column
  const open = new Set(); // rows whose details are shown

  function nameCell(video) {
    const [folder, file] = parted(video.path);
    return make(
      "button",
      { type: "button", class: "open", "aria-expanded": "false" },
      make("bdi", { class: "file" }, file),
      folder === "./" || folder === "" ? null : make("bdi", { class: "folder" }, folder),
      video.original && make("span", { class: "folder" }, "same video as ", make("bdi", {}, parted(video.original.path)[1])),
    );
  }

  function parted(path) {
    const cut = path.lastIndexOf("/") + 1;
    return [path.slice(0, cut), path.slice(cut) || path];
  }

  function reasonCell(video) {
    const partial = video.status === "partial" ? ["partial"] : [];
    const parts = [...partial, ...(video.code ? [spaced(video.code)] : [])];
    if (!parts.length && video.verdict === "fake" && video.threshold !== null) parts.push(`reaches ${score(video.threshold)}`);
    return parts.length ? make("bdi", {}, parts.join(", ")) : "–";
  }

  function evidenceCell(video) {
    if (video.start === null || isMoment(video)) return "–";
    return video.start === video.end ? time(video.start) : `${time(video.start)} – ${time(video.end)}`;
  }

  const isMoment = (video) => video.duration === null && video.start === video.end; // a picture

  function verdictCell(video) {
    const badge = make("span", { class: `badge ${video.verdict}` }, mark(video.verdict), spaced(video.verdict));
    return video.reviewer ? make("span", {}, badge, make("span", { class: "reviewer" }, `reviewer: ${video.reviewer}`)) : badge;
  }

  function scoreCell(video) {
    if (video.score === null) return "–";
    const meter = icon("meter", 60, 8, draw("rect", { class: "rail", width: 60, height: 8, rx: 2 }));
    meter.append(draw("rect", { class: "level", width: 60 * video.score, height: 8, rx: 2 }));
    if (video.threshold !== null) {
      meter.append(draw("rect", { class: "tick", x: 60 * video.threshold - 1, width: 2, height: 8 }));
    }
    return make("span", { class: "score" }, make("strong", {}, score(video.score)), meter);
  }

  function rowOf(video) {
    const line = make("tr", { role: "row", class: `video ${video.verdict}`, "data-row": video.row });
    for (const [key, column] of Object.entries(COLUMNS)) {
      const cell = make("td", { role: "cell", class: `${key} ${column.kind}`, "data-title": column.title });
      cell.append(column.cell(video));
      line.append(cell);
    }
    return line;
  }

  function comparison(key) {
    const suspicious = (a, b) => a.rank - b.rank || (b.score ?? -1) - (a.score ?? -1) || a.row - b.row;
    if (key === SUSPICIOUS) return suspicious;
    if (key === UNREVIEWED) return (a, b) => (a.reviewer !== "") - (b.reviewer !== "") || suspicious(a, b);
    const { value, first } = COLUMNS[key];
    const sign = (direction ?? first) === "ascending" ? 1 : -1;
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return a.row - b.row;
      if (x === null || y === null) return x === null ? 1 : -1; // missing values come last in both directions
      return x < y ? -sign : sign;
    };
  }

  function filtered() {
    const fields = new FormData(form);
    const verdicts = new Set(fields.getAll("verdict"));
    const part = fields.get("text").trim().toLowerCase();
    const least = fields.get("score") === "" ? null : Number(fields.get("score"));
    const isWanted = (video) => least === null || (video.score !== null && video.score >= least);
    return videos.filter((video) => verdicts.has(video.verdict) && isWanted(video) && video.haystack.includes(part));
  }

  function show() {
    const key = form.elements.order.value;
    matching = filtered().sort(comparison(key));
    numShown = 0;
    const fresh = make("tbody", { role: "rowgroup" });
    body.replaceWith(fresh);
    body = fresh;
    for (const [name, column] of Object.entries(COLUMNS)) {
      const head = table.tHead.querySelector(`.${name}`);
      if (name === key) head.setAttribute("aria-sort", direction ?? column.first);
      else head.removeAttribute("aria-sort");
    }
    showMore(CHUNK);
  }

  function showMore(most) {
    const next = matching.slice(numShown, numShown + most);
    const lines = document.createDocumentFragment();
    next.forEach((video) => lines.append(rowOf(video)));
    body.append(lines);
    numShown += next.length;
    next.filter((video) => open.has(video.row)).forEach((video) => unfold(lineOf(video.row)));
    announce();
  }

  function announce() {
    const rest = matching.length - numShown;
    const all = matching.length === videos.length ? "" : ` that match, of ${count(videos.length)} in total`;
    const part = rest ? `${count(numShown)} of ` : "";
    status.textContent = `Showing ${part}${counted(matching.length, "video", "videos")}${all}.`;
    more.hidden = rest === 0;
    more.textContent = `Show ${count(Math.min(rest, CHUNK))} more of ${count(rest)} remaining`;
    printNote.hidden = rest === 0;
    printNote.textContent = `Only the first ${count(numShown)} of ${count(matching.length)} videos are printed.`;
  }

  // ---- Opening and closing -----------------------------------------------------------------------------------

  const lineOf = (row) => body.querySelector(`tr.video[data-row="${row}"]`);
  const buttonOf = (row) => lineOf(row).querySelector(".open");

  function unfold(line) {
    const row = Number(line.dataset.row);
    const cell = make("td", { role: "cell", colspan: Object.keys(COLUMNS).length });
    line.after(make("tr", { role: "row", class: "detail", id: `detail-${row}`, "data-row": row }, cell));
    buttonOf(row).setAttribute("aria-expanded", "true");
    buttonOf(row).setAttribute("aria-controls", `detail-${row}`);
    open.add(row);
    cell.append(detailOf(videos[row], factsOf(row), Math.max(280, cell.clientWidth - 48)));
  }

  function fold(line) {
    const row = Number(line.dataset.row);
    document.getElementById(`detail-${row}`).remove();
    buttonOf(row).setAttribute("aria-expanded", "false");
    buttonOf(row).removeAttribute("aria-controls");
    open.delete(row);
  }

  const toggle = (line) => (open.has(Number(line.dataset.row)) ? fold(line) : unfold(line));

  let factLines = null;
  function factsOf(row) {
    factLines ??= document.getElementById("details").textContent.split("\n");
    return JSON.parse(factLines[row + 1].replace(/,$/, "")); // the first line is the opening bracket
  }

  // ---- One video in detail -----------------------------------------------------------------------------------

  function detailOf(video, facts, width_px) {
    const pictures = picturesOf(video.row);
    const said = make("p", { class: "statement" }, facts.statement);
    const box = make("div", { class: "inside" }, said, notice(video, facts), reviewsOf(facts));
    if (facts.tracks.length && !isMoment(video)) box.append(timeline(video, facts, Math.min(width_px, 960)));
    const sections = facts.tracks.map((track, i) => sectionOf(track, i, facts, pictures));
    const decided = facts.tracks.findIndex((track) => track.id === facts.decided);
    if (decided > 0) sections.unshift(...sections.splice(decided, 1)); // the deciding track comes first
    box.append(...sections);
    const frames = pictures.filter((picture) => picture.kind === "frame");
    if (frames.length) box.append(sampledFrames(frames));
    if ((facts.tracks.length || video.verdict === "no_face") && !pictures.length) box.append(make("p", { class: "dim" }, whyNoPictures(video.row)));
    const maps = pictures.filter((picture) => picture.kind === "heat_map");
    if (maps.length) box.append(heatMaps(maps, facts.tracks.length > 1));
    box.append(...[statements(facts), fileFacts(video, facts)].filter((part) => part !== null));
    return box;
  }

  function picturesOf(row) {
    const block = document.getElementById(`pictures-${row}`);
    const records = block ? JSON.parse(block.textContent) : [];
    return records.map(([kind, track, time_s, value, jpeg]) => ({ kind, track, time_s, value, jpeg }));
  }

  function whyNoPictures(row) {
    if (!leftOut.rows.includes(row)) return "No pictures: this scan stored none for this video.";
    return `No pictures: they were omitted to keep the pictures on this page within ${leftOut.max_mb} MB.`;
  }

  /** Why; the statement has the scores of several detectors, but only the reason of the first one is in that of the row. */
  function notice(video, { detectors }) {
    const lines = video.status === "partial" ? [["Only a part of this video was scanned."]] : [];
    const whole = `${video.code}: ${video.reason}`;
    if (video.code) lines.push([foreign("code", `${video.code}:`), " ", make("bdi", {}, video.reason)]);
    for (const { name, reason } of (detectors ?? []).slice(1)) {
      if (reason !== undefined && !whole.includes(reason)) lines.push([foreign("code", name), " ", make("bdi", {}, `(${reason})`)]);
    }
    return lines.length ? make("div", { class: "notice" }, ...lines.map((line) => make("p", {}, ...line))) : null;
  }

  /** What people say about this content, the review that counts last. */
  function reviewsOf(facts) {
    if (!facts.reviews) return null;
    const items = facts.reviews.map(({ verdict, reviewer, note, time_utc }) => {
      const about = dim(` ${time_utc.replace("T", " ").replace("Z", " UTC")}`);
      return make("li", {}, make("strong", {}, verdict), " by ", make("bdi", {}, reviewer), about, note ? ": " : "", make("bdi", {}, note ?? ""));
    });
    const [title, list] = items.length > 1 ? ["Reviews, the last one counts", "ol"] : ["Review", "ul"];
    return make("section", { class: "reviews" }, make("h4", {}, title), make(list, {}, ...items));
  }

  function sectionOf(track, i, facts, pictures) {
    const span_s = range([track.times[0], last(track.times)], time);
    const faces = pictures.filter((picture) => picture.kind === "face" && picture.track === track.id);
    const num_faces = counted(track.times.length, "face", "faces");
    const scores = track.times.length === 1 ? "score" : "scores";
    const about = `${num_faces} · ${span_s} · ${scores} ${range(track.scores, score)}`;
    const name = make("h4", {}, sample(i), `Track ${track.id}`);
    const tag = track.id === facts.decided && facts.tracks.length > 1 ? make("span", { class: "tag" }, "decides") : null;
    const head = make("div", { class: "person-head" }, name, tag, make("span", { class: "about" }, about));
    return make("section", { class: "person" }, head, faces.length ? gallery(faces, "Face") : null);
  }

  function sampledFrames(frames) {
    const figures = frames.map(({ time_s, jpeg }) => {
      const image = make("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: `Frame at ${time(time_s)}` });
      return make("figure", { class: "frame" }, image, make("figcaption", {}, time(time_s)));
    });
    const head = make("h4", {}, "Some of the searched frames");
    return make("section", { class: "frames" }, head, make("div", { class: "gallery" }, ...figures));
  }

  function heatMaps(maps, areNamed) {
    const note = "A heat map shows which regions influenced the network; it is not proof of manipulation.";
    const head = [make("h4", {}, "Heat maps (Grad-CAM)"), make("p", { class: "dim" }, note)];
    return make("section", { class: "person" }, ...head, gallery(maps, "Heat map", areNamed));
  }

  function gallery(pictures, kind, areNamed = false) {
    const figures = pictures.map((picture) => {
      const alt = `${kind} of ${nameOf(picture.track)} at ${time(picture.time_s)}, score ${score(picture.value)}`;
      const image = make("img", { src: `data:image/jpeg;base64,${picture.jpeg}`, alt });
      const whose = areNamed ? dim(` ${nameOf(picture.track)}`) : null;
      const caption = [make("strong", {}, score(picture.value)), ` ${time(picture.time_s)}`, whose];
      return make("figure", {}, image, fill(make("figcaption"), {}, caption));
    });
    return make("div", { class: "gallery" }, ...figures);
  }

  /** One sentence on the C2PA manifest. */
  function provenance({ state, signer, problem }) {
    const by = signer === undefined ? "" : `, signed by ${signer}`;
    const why = problem === undefined ? "" : ` (${problem})`;
    const sentences = {
      unknown: "unknown: the file has no C2PA manifest, which says nothing about its content",
      present: `not checked${why}`,
      unreadable: `not read${why}`,
      invalid: `invalid C2PA manifest${by}${why}`,
      valid: `valid C2PA manifest${by}, who is not on the trust list`,
      trusted: `valid C2PA manifest${by}, who is on the trust list`,
    };
    return make("bdi", {}, sentences[state]);
  }

  function manifestSays({ ai, generator, actions }) {
    const parts = [
      ai === undefined ? null : `${ai} by a trained model`,
      generator === undefined ? null : `made with ${generator}`,
      actions === undefined ? null : `actions: ${actions}`,
    ].filter((part) => part !== null);
    return parts.length ? make("bdi", {}, parts.join("; ")) : null;
  }

  const sound = (streams) => (streams ? `not examined (${counted(streams, "stream", "streams")})` : "none");

  /** Quotes what the file states about itself. */
  function statements({ stated }) {
    if (stated === undefined) return null;
    const quoted = (text) => (text === undefined ? null : make("bdi", {}, text));
    const manifest = stated.provenance;
    const pairs = {
      Provenance: manifest === undefined ? "not read" : provenance(manifest),
      "Manifest says": manifest === undefined ? null : manifestSays(manifest),
      Origin: quoted(stated.signs),
      "Encoded by": quoted(stated.encoder),
      "Written by": quoted(stated.muxer),
      "Recorded with": quoted(stated.device),
      Created: quoted(stated.created),
      "Edit list": stated.hidden === undefined ? null : `hides ${time(stated.hidden)} of video`,
      Sound: stated.sounds === undefined ? null : sound(stated.sounds),
    };
    const head = make("h4", {}, "What the file states ", dim("(quoted; only a manifest is checked)"));
    return make("section", { class: "person" }, head, factList(pairs, ["Provenance", "Manifest says", "Origin", "Encoded by"]));
  }

  function factList(pairs, wide) {
    const known = Object.entries(pairs).filter(([, value]) => value !== null);
    const list = known.map(([name, value]) =>
      make("div", { class: wide.includes(name) ? "wide" : null }, make("dt", {}, name), make("dd", {}, value)),
    );
    return make("dl", { class: "facts" }, ...list);
  }

  function encoding(facts, { bit_rate, gop }) {
    const parts = [
      facts.codec,
      facts.fps === undefined ? null : `${facts.fps} frames per second`,
      bit_rate === undefined ? null : `${(bit_rate / 1e6).toFixed(2)} Mbit/s`,
      gop === undefined ? null : `a key frame at least every ${counted(gop, "frame", "frames")}`,
    ].filter((part) => part !== null && part !== undefined);
    return parts.length ? make("bdi", {}, parts.join(", ")) : null;
  }

  function copiesOf({ copies, num_copies }) {
    const rest = num_copies - copies.length;
    const names = copies.flatMap((path, i) => [i ? ", " : null, foreign("code", path)]);
    return make("span", {}, ...names, rest ? ` and ${counted(rest, "other", "others")}` : null);
  }

  function fileFacts(video, facts) {
    const { container, brand, ...stream } = facts.stated ?? {};
    const pairs = {
      Path: foreign("code", video.path),
      "Same video as": video.original && foreign("code", video.original.path),
      Copies: facts.copies === undefined ? null : copiesOf(facts),
      Encoding: encoding(facts, stream),
      Size: facts.size === undefined ? null : bytes(facts.size),
      Resolution: facts.width === undefined ? null : `${facts.width} × ${facts.height ?? "?"} px`,
      Container: container === undefined ? null : make("bdi", {}, [container, brand].filter(Boolean).join(", ")),
      Duration: video.duration === null ? null : time(video.duration),
      Rotated: facts.turned === undefined ? null : `by ${facts.turned}° to be upright`,
      Colours: facts.hdr === undefined ? null : "high dynamic range",
      Sampling: facts.looked ? `${counted(facts.looked, "frame", "frames")} scanned` : null,
      "Judged by": judges(facts),
      "SHA-256": facts.sha256 === undefined ? null : make("code", { class: "hash" }, facts.sha256),
    };
    return make("section", { class: "person" }, make("h4", {}, "File"), factList(pairs, ["Path", "Same video as", "Copies", "Encoding", "Judged by", "SHA-256"]));
  }

  function judges({ looked, detectors, checkpoint, version }) {
    const labels = detectors ? detectors.map((each) => each.checkpoint) : [data.checkpoints[checkpoint].label];
    const names = labels.flatMap((label, i) => [i ? ", " : null, foreign("code", label)]);
    return make("span", {}, ...(looked ? [...names, " with "] : []), make("bdi", {}, `dfscan ${version}`));
  }

  // ---- The timeline ------------------------------------------------------------------------------------------

  const SHAPES = [
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M-3.6-3.6h7.2v7.2h-7.2Z",
    "M0-4.8 4.6 3.6H-4.6Z",
    "M0-5 5 0 0 5-5 0Z",
    "M0 4.8-4.6-3.6H4.6Z",
  ];
  const DASHES = [null, "7 4", "2 3", "9 3 2 3"];
  const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const round = (pixels) => Math.round(pixels * 10) / 10;

  // Colour, shape and dash of the i-th track; their combination repeats only after 20 tracks.
  const lineAs = (i, d) => draw("path", { class: `line t${i % 5}`, "stroke-dasharray": DASHES[i % 4], d });
  const pointAs = (i, x, y, ...inside) =>
    draw("path", { class: `point t${i % 5}`, d: SHAPES[i % 5], transform: `translate(${x} ${y})` }, ...inside);
  const sample = (i) => icon("sample", 34, 12, lineAs(i, "M0 6H34"), pointAs(i, 17, 6));

  /** A chart of the scores; `x` and `y` convert seconds and scores to pixels. */
  function timeline(video, facts, width_px) {
    const [left, right, top, bottom] = [44, width_px - 14, 26, 216];
    const end_s = facts.tracks.reduce((end, track) => Math.max(end, last(track.times) ?? 0), video.duration ?? 0) || 1;
    const x = (time_s) => round(left + ((right - left) * time_s) / end_s);
    const y = (value) => round(bottom - (bottom - top) * value);
    const frame = { left, right, top, bottom, end_s, x, y };
    const [title, words] = [`title-${video.row}`, `words-${video.row}`];
    const chart = draw("svg", { class: "timeline", viewBox: `0 0 ${width_px} ${bottom + 40}`, role: "img" });
    chart.setAttribute("aria-labelledby", `${title} ${words}`);
    chart.append(draw("title", { id: title }, "Scores of the faces over time"));
    const whose = facts.detectors ? `, by ${facts.detectors[0].name}` : "";
    chart.append(draw("desc", { id: words }, inWords(video, facts)), ...span(facts, frame), ...axes(frame, whose));
    facts.tracks.forEach((track, i) => chart.append(...trackShapes(track, i, frame)));
    const real = data.checkpoints[facts.checkpoint].real;
    chart.append(...limit("fake", video.threshold, frame), ...limit("real", real, frame));
    const names = [...limitName("fake", video.threshold), ...limitName("real", real)];
    return make("div", { class: "chart" }, chart, make("p", { class: "limits" }, ...names));
  }

  function axes({ left, right, bottom, end_s, x, y }, whose) {
    const parts = [0, 0.25, 0.5, 0.75, 1].flatMap((value) => [
      draw("path", { class: "grid", d: `M${left} ${y(value)}H${right}` }),
      draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)),
    ]);
    const most = Math.max(2, Math.floor((right - left) / 70));
    const step_s = STEPS_S.find((each) => end_s / each <= most) ?? end_s / 2;
    for (let time_s = 0; time_s <= end_s * 1.0001; time_s += step_s) {
      const name = time(time_s, step_s < 1 ? 1 : 0);
      parts.push(draw("path", { class: "grid", d: `M${x(time_s)} ${bottom}v5` }));
      parts.push(draw("text", { x: x(time_s), y: bottom + 18, "text-anchor": "middle" }, name));
    }
    parts.push(draw("text", { class: "axis", x: left, y: bottom + 35 }, `score of each face over time (m:ss)${whose}`));
    return parts;
  }

  /** Marks the time of the deciding track, if there are others. */
  function span(facts, { top, bottom, right, x }) {
    const track = facts.tracks.find((each) => each.id === facts.decided);
    if (!track || facts.tracks.length === 1) return [];
    const [from, to] = [x(track.times[0]), x(last(track.times))];
    const middle = Math.min(Math.max((from + to) / 2, 100), right - 60);
    const place = { class: "span-name", x: middle, y: top - 9, "text-anchor": "middle" };
    return [
      draw("rect", { class: "span", x: from - 5, width: to - from + 10, y: top, height: bottom - top }),
      draw("text", place, `${nameOf(track.id)} decides`),
    ];
  }

  function limit(kind, value, { left, right, y }) {
    return value === null ? [] : [draw("path", { class: `limit ${kind}`, d: `M${left} ${y(value)}H${right}` })];
  }

  /** The name of a threshold, for below the chart: inside it, there is no place that no line can reach. */
  function limitName(kind, value) {
    if (value === null) return [];
    const line = icon("sample", 34, 12, draw("path", { class: `limit ${kind}`, d: "M0 6H34" }));
    return [make("span", { class: `limit-name ${kind}` }, line, `${kind} threshold ${score(value)}`)];
  }

  function trackShapes(track, i, { x, y }) {
    const known = track.times.map((time_s, n) => [time_s, track.scores[n]]).filter((pair) => !pair.includes(null));
    if (!known.length) return [];
    const points = known.map(([time_s, value]) => {
      const words = `${nameOf(track.id)} at ${time(time_s)}: ${score(value)}`;
      return pointAs(i, x(time_s), y(value), draw("title", {}, words));
    });
    return [lineAs(i, `M${known.map(([time_s, value]) => `${x(time_s)} ${y(value)}`).join("L")}`), ...points];
  }

  function inWords(video, facts) {
    const tracks = facts.tracks.map((track) => {
      const span_s = range([track.times[0], last(track.times)], time);
      const faces = counted(track.times.length, "face", "faces");
      return `${nameOf(track.id)}: ${faces} from ${span_s}, scores ${range(track.scores, score)}`;
    });
    const threshold = video.threshold === null ? "No threshold" : `Fake threshold ${score(video.threshold)}`;
    return `${tracks.join("; ")}. ${threshold}.`;
  }

  // ---- Wiring ------------------------------------------------------------------------------------------------

  function headOf(key) {
    const column = COLUMNS[key];
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const turned = (direction ?? column.first) === "ascending" ? "descending" : "ascending";
      direction = form.elements.order.value === key ? turned : null;
      form.elements.order.value = key;
      show();
    });
    return make("th", { role: "columnheader", scope: "col", class: `${key} ${column.kind}` }, button);
  }

  function onKey(event) {
    const line = event.target.closest("tr[data-row]");
    if (event.key === "Escape" && !event.target.closest("form")) {
      const row = line ? Number(line.dataset.row) : last([...open]); // without a row, use the one opened last
      if (!open.has(row) || !lineOf(row)) return;
      fold(lineOf(row));
      buttonOf(row).focus();
    } else if (["ArrowDown", "ArrowUp"].includes(event.key) && event.target.matches(".open")) {
      const buttons = [...body.querySelectorAll(".open")];
      buttons[buttons.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
      event.preventDefault();
    }
  }

  table.tHead.rows[0].append(...Object.keys(COLUMNS).map(headOf));
  form.elements.order.append(make("option", { value: SUSPICIOUS }, "Most suspicious first"));
  if (videos.some((video) => video.reviewer)) form.elements.order.append(make("option", { value: UNREVIEWED }, "Not reviewed first"));
  for (const [key, column] of Object.entries(COLUMNS)) {
    const name = key === "name" ? "name" : column.title.toLowerCase();
    form.elements.order.append(make("option", { value: key }, `By ${name}`));
  }
  form.reset(); // some browsers restore form values after a reload
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("input", (event) => {
    if (event.target.form !== form) return;
    if (event.target.name === "order") direction = null;
    show();
  });
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    direction = null;
    show();
  });
  table.addEventListener("click", (event) => {
    const line = event.target.closest("tr.video");
    if (line && (event.target.closest(".open") || getSelection().isCollapsed)) toggle(line);
  });
  document.addEventListener("keydown", onKey);
  more.addEventListener("click", () => {
    const first = numShown;
    showMore(CHUNK);
    buttonOf(matching[first].row).focus();
  });
  addEventListener("beforeprint", () => showMore(Math.max(0, MOST_PRINTED - numShown)));

  form.hidden = table.hidden = videos.length === 0;
  document.querySelectorAll(".counts input").forEach((box) => (box.hidden = false));
  show();
})();
