/** For tests: the files of /sys that tell about PCI devices, their drivers and IOMMU groups. */
import { posix } from 'node:path';

/** One entry. */
type Entry =
  | { readonly kind: 'text'; text: () => string; write?: (text: string) => void }
  | { readonly kind: 'link'; readonly target: () => string | undefined };

/** A tree of files and links; directories are what is above them. */
export class FakeSysfs {
  readonly #entries = new Map<string, Entry>();

  /** A file. `write`: what writing it does; absent: it is only replaced. */
  file(path: string, text: string | (() => string), write?: (text: string) => void): void {
    this.#entries.set(path, { kind: 'text', text: typeof text === 'string' ? () => text : text, write });
  }

  /** A symbolic link; not there while `target` gives nothing. */
  link(path: string, target: () => string | undefined): void {
    this.#entries.set(path, { kind: 'link', target });
  }

  /** Takes away an entry, or all of a directory. */
  remove(path: string): void {
    for (const each of [...this.#entries.keys()])
      if (each === path || each.startsWith(`${path}/`)) this.#entries.delete(each);
  }

  readText(path: string): string | undefined {
    const entry = this.#entries.get(this.#resolve(path));
    return entry?.kind === 'text' ? entry.text() : undefined;
  }

  /** @returns false when there is no such file */
  writeText(path: string, text: string): boolean {
    const at = this.#resolve(path);
    const entry = this.#entries.get(at);
    if (entry?.kind !== 'text') return false;
    if (entry.write !== undefined) entry.write(text);
    else this.file(at, text);
    return true;
  }

  /** As readlink(2), relative to the link's directory as in the real one. */
  readLink(path: string): string | undefined {
    const at = posix.join(this.#resolve(posix.dirname(path)), posix.basename(path));
    const entry = this.#entries.get(at);
    const target = entry?.kind === 'link' ? entry.target() : undefined;
    return target === undefined ? undefined : posix.relative(posix.dirname(at), target);
  }

  list(directory: string): string[] {
    const prefix = `${this.#resolve(directory)}/`;
    const names = new Set<string>();
    for (const [path, entry] of this.#entries) {
      if (!path.startsWith(prefix) || (entry.kind === 'link' && entry.target() === undefined)) continue;
      names.add(path.slice(prefix.length).split('/')[0]);
    }
    return [...names].sort();
  }

  exists(path: string): boolean {
    const at = this.#resolve(path);
    return this.#entries.has(at) || this.list(at).length > 0;
  }

  /** Follows the links in `path`, the last part included. */
  #resolve(path: string): string {
    let done = '';
    for (const part of path.split('/').filter((each) => each !== '')) {
      done = posix.join(done === '' ? '/' : done, part);
      for (let entry = this.#entries.get(done); entry?.kind === 'link'; entry = this.#entries.get(done)) {
        const target = entry.target();
        if (target === undefined) break;
        done = target;
      }
    }
    return done;
  }
}
