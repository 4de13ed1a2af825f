// Node's own fetch, with what an app writes around it.

export { follow as default } from "./resume.mjs";
