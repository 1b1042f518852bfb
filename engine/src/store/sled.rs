pub struct SledStore;
