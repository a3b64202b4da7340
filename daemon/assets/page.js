// The web page of pyvxlan: asks for everything every two seconds and shows it.
//
// Names come from the store, so anybody who may write there chooses them: they become text nodes and
// nothing else. A failed question is asked again, ever more slowly. A hidden page asks nothing.
"use strict";

const EVERY_MS = 2000;
const SLOWEST_MS = 30000;
const HOSTS_DRAWN = 8;
const ENDPOINTS_DRAWN = 5;
const EVENTS_SHOWN = 200;
const COLOURS = 8;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
let paused = false;
let timer = 0;
let waitMs = EVERY_MS;
let asking = null;
let events = [];

// Words and numbers

function rate(value, unit) {
  if (value === null || value === undefined) return "—";
  for (const prefix of ["", "k", "M", "G"]) {
    if (value < 999.5) {
      const digits = prefix && value < 99.95 ? 1 : 0;
      return `${value.toFixed(digits)} ${prefix}${unit}`;
    }
    value /= 1000;
  }
  return `${value.toFixed(1)} T${unit}`;
}

const bits = (bytes) => rate(bytes === null || bytes === undefined ? null : 8 * bytes, "bit/s");

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"]];
  for (const [size, unit] of parts) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

const known = (value, show) => (value === null || value === undefined ? "—" : show(value));
const milliseconds = (seconds) => known(seconds, (s) => `${(1000 * s).toFixed(2)} ms`);
const percent = (share) => known(share, (s) => `${(100 * s).toFixed(s < 0.1 ? 2 : 1)} %`);

function colour(text) {
  let sum = 0;
  for (const letter of text) sum = (31 * sum + letter.codePointAt(0)) % 65521;
  return `n${sum % COLOURS}`;
}

const shorter = (text, most) => {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
};

// Writing into the page; only what has changed, so that a selection stays

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// A cell is a text, or a text with a class.
function fillTable(id, rows, empty) {
  const body = byId(id).tBodies[0];
  const heads = byId(id).tHead.rows[0].cells;
  const shown = rows.length ? rows : [[empty]];
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((cells, number) => {
    let row = body.rows[number];
    if (!row || row.cells.length !== cells.length) {
      const fresh = document.createElement("tr");
      cells.forEach((_, column) => {
        const cell = element(column === 0 && rows.length ? "th" : "td");
        if (cell.tagName === "TH") cell.scope = "row";
        fresh.append(cell);
      });
      if (!rows.length) fresh.cells[0].colSpan = heads.length;
      if (row) row.replaceWith(fresh);
      else body.append(fresh);
      row = fresh;
    }
    cells.forEach((cell, column) => {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      write(row.cells[column], text);
      const wanted = [rows.length && heads[column].className, kind].filter(Boolean).join(" ");
      if (row.cells[column].className !== wanted) row.cells[column].className = wanted;
    });
  });
}

function fillList(id, pairs) {
  const list = byId(id);
  while (list.children.length > pairs.length) list.lastElementChild.remove();
  pairs.forEach(([term, text, kind = ""], number) => {
    let group = list.children[number];
    if (!group) {
      group = document.createElement("div");
      group.append(document.createElement("dt"), document.createElement("dd"));
      list.append(group);
    }
    write(group.children[0], term);
    write(group.children[1], text);
    if (group.children[1].className !== kind) group.children[1].className = kind;
  });
}

function more(id, found) {
  const left = found.total - found.shown.length;
  write(byId(id), left > 0 ? `${left} more: find them by name, host or address.` : "");
}

// The views

const STATES = {synced: "good", stale: "bad", init: "bad"};

function showSummary(summary) {
  document.title = `pyvxlan ${summary.host}`;
  write(byId("host"), summary.host);
  const forwarder = summary.forwarder.up ? "up" : "down";
  fillList("summary", [
    ["Store", summary.store, STATES[summary.store]],
    ["Forwarder", forwarder, summary.forwarder.up ? "good" : "bad"],
    ["Hosts", `${summary.hosts_alive} of ${summary.hosts} up`,
      summary.hosts_alive < summary.hosts ? "warn" : ""],
    ["Networks", String(summary.networks)],
    ["Endpoints here", String(summary.endpoints_here)],
    ["Up", duration(summary.uptime_s)],
    ["Version", summary.version],
  ]);
}

function showTunnels(hosts, tunnels) {
  const byName = new Map(tunnels.map((tunnel) => [tunnel.host, tunnel]));
  const rows = hosts.map((host) => {
    const tunnel = byName.get(host.name) || {rates: null};
    const flow = tunnel.rates || {};
    return [
      host.self ? `${host.name} (this host)` : host.name,
      host.alive ? ["up", "good"] : ["down", "bad"],
      host.vtep,
      host.version,
      String(host.endpoints),
      host.self ? "" : bits(flow.sent_bytes),
      host.self ? "" : bits(flow.received_bytes),
      host.self ? "" : milliseconds(tunnel.rtt_s),
      host.self ? "" : [percent(tunnel.loss), tunnel.loss > 0 ? "bad" : ""],
      host.self ? "" : known(tunnel.path_mtu_bytes, String),
    ];
  });
  fillTable("tunnels-table", rows, "No host is known yet.");
}

function showNetworks(found) {
  const rows = found.shown.map((network) => {
    const flow = network.rates || {};
    return [
      network.state === "up" ? network.name : `${network.name} (being removed)`,
      String(network.vni),
      network.subnets.join(", "),
      String(network.mtu_bytes),
      network.here ? String(network.local) : "—",
      known(network.remote, String),
      bits(flow.egress_bytes),
      bits(flow.ingress_bytes),
      [known(flow.drops, (drops) => drops.toFixed(drops && drops < 10 ? 1 : 0)),
        flow.drops > 0 ? "warn" : ""],
    ];
  });
  fillTable("networks-table", rows, "No network.");
  more("networks-more", found);
}

function showEndpoints(found) {
  const rows = found.shown.map((endpoint) => [
    endpoint.name, endpoint.network, endpoint.host, endpoint.addresses.join(", "),
  ]);
  fillTable("endpoints-table", rows, "No endpoint.");
  more("endpoints-more", found);
}

function showDrops(found) {
  const rows = found.shown.map((drop) => [
    drop.network || "(none of this host)", drop.direction, drop.reason.replaceAll("_", " "),
    drop.frames.toLocaleString("en"),
  ]);
  fillTable("drops-table", rows, "Nothing was dropped.");
  more("drops-more", found);
}

function showStore(all) {
  const {store, summary, threads} = all;
  const problems = [store.problem, store.move_problem, ...summary.reconcile.problems];
  fillList("store-list", [
    ["Store", store.url],
    ["State", store.state, STATES[store.state]],
    ...(store.stale_s === null ? [] : [["Has not answered for", duration(store.stale_s), "bad"]]),
    ...(store.cause ? [["Cause", store.cause, "bad"]] : []),
    ["Session valid for", duration(store.session_valid_s), store.session_valid_s > 0 ? "" : "bad"],
    ["Records held", String(store.held), store.held ? "warn" : ""],
    ["Records left out", String(Object.keys(store.invalid).length),
      Object.keys(store.invalid).length ? "bad" : ""],
    ["Repairs", String(summary.reconcile.repairs)],
    ["Forwarder replaced", `${summary.forwarder.restarts} times`,
      summary.forwarder.restarts ? "warn" : ""],
    ...threads.map((thread) => [
      `Thread ${thread.number}`,
      `busy ${percent(thread.busy)}, queue ${percent(thread.queue)} full`,
    ]),
    ...problems.filter(Boolean).map((problem) => ["Problem", problem, "bad"]),
  ]);
}

function showEvents(fresh) {
  if (fresh.length) events = [...fresh.reverse(), ...events].slice(0, EVENTS_SHOWN);
  const rows = events.map((event) => [
    event.time.replace("T", " ").replace("Z", ""), event.kind.replaceAll("_", " "), event.text,
  ]);
  fillTable("events-table", rows, "Nothing has happened yet.");
}

// The picture: this host at the left, the others at the right, a line for each tunnel

function draw(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

// Says what a box does not draw; nothing if it draws all.
function remainder(host, endpoints) {
  const left = host.endpoints - Math.min(endpoints.length, ENDPOINTS_DRAWN);
  if (left > 0) return `and ${left} more`;
  return endpoints.length ? "" : "no endpoint on this host's networks";
}

function hostHeight(host, endpoints) {
  const lines = Math.min(endpoints.length, ENDPOINTS_DRAWN) + Boolean(remainder(host, endpoints));
  return 48 + 20 * lines;
}

function drawHost(host, endpoints, x, y) {
  const some = endpoints.slice(0, ENDPOINTS_DRAWN);
  const parts = [
    draw("rect", {x, y, width: 330, height: hostHeight(host, endpoints), rx: 8,
      class: host.self ? "self" : host.alive ? "" : "down"}),
    draw("text", {x: x + 14, y: y + 24, class: "name"}, shorter(host.name, 24)),
    draw("text", {x: x + 316, y: y + 24, "text-anchor": "end", class: host.alive ? "soft" : "down"},
      host.alive ? host.vtep : "down"),
  ];
  some.forEach((endpoint, number) => {
    const line = y + 48 + 20 * number;
    parts.push(
      draw("circle", {cx: x + 20, cy: line - 5, r: 6, class: colour(endpoint.network)}),
      draw("text", {x: x + 34, y: line}, shorter(endpoint.name, 18)),
      draw("text", {x: x + 316, y: line, "text-anchor": "end", class: "soft"},
        shorter(endpoint.network, 18)));
  });
  const left = remainder(host, endpoints);
  if (left) {
    parts.push(draw("text", {x: x + 34, y: y + 48 + 20 * some.length, class: "soft"}, left));
  }
  return parts;
}

function showPicture(all) {
  const byHost = new Map(all.hosts.map((host) => [host.id, []]));
  for (const endpoint of all.endpoints.shown) byHost.get(endpoint.host_id)?.push(endpoint);
  const own = all.hosts.find((host) => host.self);
  const order = new Map(all.tunnels.map((tunnel, number) => [tunnel.host, number]));
  const others = all.hosts.filter((host) => !host.self);
  others.sort((one, two) => (order.get(one.name) ?? 1e9) - (order.get(two.name) ?? 1e9));
  const drawn = others.slice(0, HOSTS_DRAWN);
  const flows = new Map(all.tunnels.map((tunnel) => [tunnel.host, tunnel]));
  const boxes = [];
  let y = 16;
  for (const host of drawn) {
    const endpoints = byHost.get(host.id);
    boxes.push({host, endpoints, y});
    y += hostHeight(host, endpoints) + 14;
  }
  const ownEndpoints = own ? byHost.get(own.id) : [];
  const ownHeight = own ? hostHeight(own, ownEndpoints) : 0;
  const height = Math.max(y + 2, ownHeight + 32);
  const ownY = (height - ownHeight) / 2;
  const parts = [
    draw("title", {id: "drawing-title"}, "Hosts, their endpoints, and the tunnels of this host"),
    draw("desc", {id: "drawing-text"},
      `${all.summary.hosts} hosts, ${all.summary.networks} networks, ${all.endpoints.total} ` +
      "endpoints. The tables below have all of it."),
  ];
  for (const {host, endpoints, y: top} of boxes) {
    const tunnel = flows.get(host.name) || {rates: null};
    const flow = tunnel.rates;
    const bytes = flow ? flow.sent_bytes + flow.received_bytes : 0;
    const middle = top + hostHeight(host, endpoints) / 2;
    const health = [milliseconds(tunnel.rtt_s), known(tunnel.loss, (share) => `${percent(share)} lost`)];
    parts.push(
      // Level below its words, which it would cross otherwise.
      draw("polyline", {points: `346,${height / 2} 424,${middle} 654,${middle}`,
        "stroke-width": (1.5 + Math.log10(1 + bytes / 100) / 1.5).toFixed(1),
        class: host.alive ? "" : "down"}),
      draw("text", {x: 646, y: middle - 9, "text-anchor": "end"},
        flow ? `${bits(flow.sent_bytes)} out, ${bits(flow.received_bytes)} in` : ""),
      draw("text", {x: 646, y: middle + 20, "text-anchor": "end", class: tunnel.loss > 0 ? "bad" : ""},
        health.filter((one) => one !== "—").join(", ")));
  }
  if (own) parts.push(...drawHost(own, ownEndpoints, 16, ownY));
  for (const {host, endpoints, y: top} of boxes) parts.push(...drawHost(host, endpoints, 654, top));
  const drawing = byId("drawing");
  drawing.setAttribute("viewBox", `0 0 1000 ${height}`);
  drawing.replaceChildren(...parts);
  const left = others.length - drawn.length;
  write(byId("picture-more"), left > 0 ? `${left} more hosts: see the table.` : "");
}

// Asking

function show(all) {
  showSummary(all.summary);
  showTunnels(all.hosts, all.tunnels);
  showNetworks(all.networks);
  showEndpoints(all.endpoints);
  showDrops(all.drops);
  showStore(all);
  showEvents(all.events);
  showPicture(all);
}

async function ask() {
  clearTimeout(timer);
  asking?.abort();
  const mine = asking = new AbortController();
  const limit = setTimeout(() => mine.abort(), SLOWEST_MS);
  try {
    const query = new URLSearchParams({
      find: byId("find").value, after: String(events.length ? events[0].number : 0),
    });
    const answer = await fetch(`api/v1/all?${query}`, {signal: mine.signal});
    if (!answer.ok) throw new Error(await answer.text());
    const all = await answer.json();
    if (mine !== asking) return;
    show(all);
    waitMs = EVERY_MS;
    tell(paused ? "paused" : "live");
  } catch {
    if (mine !== asking) return;
    waitMs = Math.min(2 * waitMs, SLOWEST_MS);
    tell(`no answer, asked again every ${Math.round(waitMs / 1000)} s`);
  } finally {
    clearTimeout(limit);
    if (mine === asking) next();
  }
}

function next() {
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(ask, waitMs);
}

function tell(text) {
  write(byId("live"), text);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  tell(paused ? "paused" : "live");
  if (paused) next();
  else ask();
});
byId("find").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, 200);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) ask();
});
ask();
