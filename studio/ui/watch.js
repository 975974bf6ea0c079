// Asks once a second whether anything changed, which costs the server a query or two, and draws again only then.
// It also keeps the address, the title and notifications in step with what is shown.
const PACE_MS = 1000, HIDDEN_EVERY = 5, SETTLE_MS = 2500, SILENT_AFTER = 3;
const address = new URL('changes', document.baseURI);
const field = (id) => document.querySelector(`#${id} :is(input, textarea)`)?.value ?? '';
const tab = () => document.querySelector('#tabs > .tab-wrapper [role="tab"][aria-selected="true"]')?.textContent.trim().toLowerCase() ?? '';
let mark = '', settle = 0, skipped = 0, silent = 0, known = null, shown = null, wanted = null, before = '';

const look = async () => {
  if (document.hidden && skipped++ % HIDDEN_EVERY) return;
  let said;
  try {
    const answer = await fetch(address, {cache: 'no-store'});
    if (!answer.ok) throw new Error(answer.statusText);
    said = await answer.text();
  } catch {
    tellSilence(++silent);
    return;
  }
  tellSilence(silent = 0);
  if (said !== mark || (settle && Date.now() > settle)) {
    settle = said !== mark ? Date.now() + SETTLE_MS : 0;  // once more, should the first answer have been overtaken by another
    mark = said;
    trigger('act', {tab: tab()});
  }
};

const tellSilence = (times) => {
  const place = document.getElementById('lost');
  if (!place || (times && times !== SILENT_AFTER) || (!times && !place.textContent)) return;
  const since = new Date().toLocaleTimeString([], {hour: '2-digit', minute: '2-digit', second: '2-digit'});
  place.textContent = times ? `The studio does not answer since ${since}. Trainings may go on; what you see is older.` : '';
};

const keepInStep = () => {
  const status = document.querySelector('.as-status');
  if (status) {
    const title = (status.dataset.share ? `(${status.dataset.share} %) ` : '') + 'Adapter Studio';
    if (document.title !== title) document.title = title;
    notify(JSON.parse(status.dataset.ended || '[]'));
  }
  if (field('linked')) keepAddress(tab(), field('view'));  // not before the link that opened the page was followed
};

const keepAddress = (opened, view) => {
  if (wanted && view !== wanted.view && Date.now() < wanted.until) return;
  wanted = null;
  setAddress(opened, view);
};
const setAddress = (opened, view) => {
  const url = new URL(location.href);
  url.searchParams.set('tab', opened);
  const one = opened === 'adapters' ? field('adapter-shown') : '', found = opened === 'adapters' ? field('adapter-sought') : '';
  if (one) url.searchParams.set('adapter', one); else if (opened !== 'chat' || before === 'adapters') url.searchParams.delete('adapter');
  if (found) url.searchParams.set('find', found); else url.searchParams.delete('find');
  before = opened;
  if (opened === 'chat' && field('talk')) url.searchParams.set('talk', field('talk')); else url.searchParams.delete('talk');
  if (opened === 'train' && view) url.searchParams.set('job', view); else url.searchParams.delete('job');
  const href = url.href.replaceAll('%2C', ',');
  if (href !== location.href) history[shown !== null && shown !== view && opened === 'train' ? 'pushState' : 'replaceState'](null, '', href);
  shown = view;
};
const want = (view) => { wanted = {view, until: Date.now() + 5000}; };
addEventListener('as-look', (event) => { want(event.detail); setAddress('train', event.detail); });  // a click that opens a training
addEventListener('popstate', () => {
  const view = new URL(location.href).searchParams.get('job') || '';
  want(view);
  shown = view;
  trigger('go', {view});
});

const inWords = (s) => s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
const keepClocks = () => document.querySelectorAll('time[data-since]').forEach((tag) => {
  const words = inWords(Math.max(0, Math.round(Date.now() / 1000 - tag.dataset.since)));
  if (tag.textContent !== words) tag.textContent = words;
});

const notify = (ended) => {
  const key = (job) => `${job.id} ${job.at}`;
  const fresh = known ? ended.filter((job) => !known.has(key(job)) && job.state !== 'cancelled') : [];
  known = new Set([...(known || []), ...ended.map(key)]);
  if (!document.hidden || !wishes()) return;
  for (const job of fresh) {
    const text = job.state === 'done' ? 'The training is done; the adapter is ready.' : `The training failed. ${job.why}`;
    new Notification(job.name, {body: text, tag: key(job)}).onclick = () => { window.focus(); trigger('go', {view: job.id}); };
  }
};
const wishes = () => 'Notification' in window && Notification.permission === 'granted' && localStorage.getItem('as-notify') === 'on';
const showWish = () => {  // nothing is written that stands there already: each write makes the browser match its styles again
  const on = wishes(), root = document.documentElement.classList;
  if (root.contains('as-notified') !== on) root.toggle('as-notified', on);
  for (const button of document.querySelectorAll('[data-notify]')) {
    if (button.getAttribute('aria-pressed') !== String(on)) button.setAttribute('aria-pressed', String(on));
  }
};
document.addEventListener('click', async (event) => {
  if (!event.target.closest('[data-notify]')) return;
  const on = wishes();
  if (!on && 'Notification' in window) await Notification.requestPermission();  // asked only after this click
  localStorage.setItem('as-notify', on ? 'off' : 'on');
  if (!on && !wishes()) alert('This browser does not allow notifications of this page; allow them in its settings.');
  showWish();
});

// Gradio's loading screen goes without ending its timer, which then asks for a frame, sixty times a second, while the page is open.
// It took `requestAnimationFrame` when it was loaded, so its requests alone do not come by here; once cancelled it asks no more.
const endLoadingTimer = () => {
  const ask = window.requestAnimationFrame, passed = new Set();
  window.requestAnimationFrame = (call) => { const id = ask(call); passed.add(id); return id; };
  ask(() => setTimeout(() => {  // behind a frame, so that nothing waits any more of what was asked for before
    window.requestAnimationFrame = ask;
    for (let id = ask(() => {}); id > 0; id--) if (!passed.has(id)) cancelAnimationFrame(id);
  }));
};
endLoadingTimer();

const turn = async () => {
  try { await look(); keepInStep(); keepClocks(); showWish(); } finally { setTimeout(turn, PACE_MS); }
};
turn();
