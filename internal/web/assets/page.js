// What the page does more with JavaScript: it moves by itself, and answers without
// being loaded anew. Without it everything works as well.
"use strict";

(() => {
	const live = document.getElementById("live");

	// say tells what became of something, and has a screen reader say it.
	function say(text, severity) {
		let p = document.getElementById("message");
		if (!p) {
			p = document.createElement("p");
			p.id = "message";
			document.getElementById("main").prepend(p);
		}
		p.className = "message " + severity;
		p.setAttribute("role", severity === "good" ? "status" : "alert");
		p.textContent = text;
	}

	// replace gives an element another content, when nobody presses a button in it or
	// has marked some of its text. What was open stays open, and who had the focus
	// within it keeps it.
	const waiting = new Map();
	function replace(id, html) {
		const again = waiting.has(id);
		waiting.set(id, html);
		if (!again) apply(id);
	}
	function apply(id) {
		const element = document.getElementById(id);
		const html = waiting.get(id);
		if (element) {
			const marked = getSelection();
			if (element.querySelector(":active") || (!marked.isCollapsed && marked.containsNode(element, true))) {
				setTimeout(apply, 300, id);
				return;
			}
		}
		waiting.delete(id);
		if (!element) return;
		const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
		const details = new Map([...element.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
		const scrolled = [...element.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
		element.innerHTML = html;
		for (const d of element.querySelectorAll("details[id]")) {
			if (details.has(d.id)) d.open = details.get(d.id);
		}
		element.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = scrolled[i] || 0; });
		if (focused) (document.getElementById(focused) || element.querySelector("button, summary"))?.focus();
	}

	// A stream is a connection, of which a browser has six for all its tabs: only
	// the tab that is looked at has one.
	let stream = null;
	let lost = 0;
	let heard = Date.now();
	function listen() {
		if (stream || document.hidden || !document.body.dataset.live) return;
		stream = new EventSource(document.body.dataset.live);
		const alive = () => {
			heard = Date.now();
			if (!lost && live.textContent === "Live") return; // said already
			lost = 0;
			live.className = "live on";
			live.textContent = "Live";
		};
		stream.onopen = () => { heard = Date.now(); };
		stream.addEventListener("beat", alive);
		stream.addEventListener("section", (event) => {
			alive();
			const { id, html } = JSON.parse(event.data);
			replace(id, html);
		});
		// The pools there are, or what one may do, are not those of the page.
		stream.addEventListener("reload", () => location.reload());
		stream.onerror = () => {
			notLive();
			if (stream.readyState === EventSource.CLOSED) {
				stream = null;
				setTimeout(listen, 5000);
			}
		};
	}
	function notLive() {
		lost = lost || Math.max(heard, 1);
		live.className = "live lost";
		live.textContent = "Not live" + (heard ? " since " + new Date(heard).toLocaleTimeString() : "") + ": the daemon does not answer";
	}
	// A connection that is dead need not be closed: there is a beat every 15 seconds.
	setInterval(() => {
		if (!stream || Date.now() - heard < 40000) return;
		notLive();
		stream.close();
		stream = null;
		listen();
	}, 5000);
	document.addEventListener("visibilitychange", () => {
		if (document.hidden) {
			stream?.close();
			stream = null;
		}
		listen();
	});
	addEventListener("pagehide", () => { stream?.close(); stream = null; });
	addEventListener("pageshow", listen);

	document.addEventListener("submit", async (event) => {
		const form = event.target;
		// Without the token a button leads to the page that asks for it.
		if (form.matches("form.act") && !document.body.hasAttribute("data-locked")) {
			event.preventDefault();
			const button = form.querySelector("button");
			button.disabled = true;
			try {
				const answer = await fetch(form.action, { method: "POST", headers: { Accept: "application/json" }, redirect: "error" });
				if (answer.status === 401) {
					form.submit(); // the session has ended meanwhile
					return;
				}
				const body = await answer.json();
				say(body.message || body.detail, answer.ok ? "good" : "critical");
			} catch {
				say("The daemon does not answer. Whether it did that is not known.", "critical");
			} finally {
				button.disabled = false;
			}
		}
		if (form.matches("form.ask")) {
			event.preventDefault();
			const answer = document.getElementById(form.dataset.answer);
			const query = new URLSearchParams(new FormData(form));
			try {
				const response = await fetch(form.action + "/what-if?" + query);
				if (!response.ok) throw new Error(response.status);
				answer.innerHTML = await response.text();
			} catch {
				answer.textContent = "The daemon does not answer.";
			}
		}
	});
	listen();
})();
